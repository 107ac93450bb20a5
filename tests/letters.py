"""A tokenizer of single letters, for tests that want to see each token."""

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from autoft.text import TextPreprocessing

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij", *(f"##{letter}" for letter in "abcdefghij")]
NAMES = ("input_ids", "attention_mask", "token_type_ids")


def tokenizer(special: bool = True) -> str:
    """A word-piece tokenizer of single letters: `ab` becomes `a ##b`."""
    made = Tokenizer(models.WordPiece({token: number for number, token in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    if special:
        made.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return made.to_str()


PLAIN = TextPreprocessing(tokenizer(), {"pad_token": "[PAD]"}, 0, NAMES, limit=64)

"""The plugins that ship with autoft; they enter by the same entry points as anyone's."""

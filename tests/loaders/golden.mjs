// Feeds a bundle's golden inputs to a JavaScript runtime; the same code in Node and in a browser.
// `ort`: onnxruntime-node or onnxruntime-web. `hub`: transformers.js. `read(path)`: bytes of a file of the bundle.

const json = async (read, path) => JSON.parse(new TextDecoder().decode(await read(path)))

// A .npy file of format 1.0, in C order: its header says type and shape.
async function array(read, path) {
  const bytes = Uint8Array.from(await read(path))
  const start = 10 + new DataView(bytes.buffer).getUint16(8, true)
  const header = new TextDecoder().decode(bytes.slice(10, start))
  const shape = header.match(/'shape': \(([^)]*)\)/)[1].split(',').filter((size) => size.trim()).map(Number)
  const types = {'<f4': ['float32', Float32Array], '<i8': ['int64', BigInt64Array]}
  const [type, Values] = types[header.match(/'descr': '([^']*)'/)[1]]
  return [type, new Values(bytes.slice(start).buffer), shape]
}

const rows = (values, dims) => Array.from({length: dims[0]}, (_, row) => Array.from(values.slice(row * dims[1], (row + 1) * dims[1]), Number))

// The graphs by onnxruntime alone. It has no tokenizer: texts go through that of transformers.js.
export async function graphs({ort, hub, name, read, image}) {
  const contract = await json(read, 'autoft.json')
  const golden = await json(read, 'golden/golden.json')
  const open = async (path) => ort.InferenceSession.create(await read(path), {executionProviders: ['cpu']})
  const model = await open('onnx/model.onnx')
  const feeds = {}
  for (const input of contract.inputs) feeds[input] = new ort.Tensor(...(await array(read, `golden/${input}.npy`)))
  const {logits} = await model.run(feeds)
  const raw = []
  if (contract.preprocessing.kind === 'image') {
    const preprocess = await open('onnx/preprocess.onnx')
    for (const file of golden.inputs) {
      const {data, width, height} = await image(`golden/inputs/${file}`)
      const {pixel_values} = await preprocess.run({image: new ort.Tensor('uint8', Uint8Array.from(data), [1, height, width, 3])})
      raw.push(Array.from((await model.run({pixel_values})).probabilities.data))
    }
  } else {
    const tokenizer = await hub.AutoTokenizer.from_pretrained(name)
    for (const text of golden.inputs) {
      const tokens = tokenizer(text, {truncation: true})
      // of single texts, token types are zeros, which the tokenizer leaves out
      tokens.token_type_ids ??= {data: new BigInt64Array(tokens.input_ids.data.length), dims: tokens.input_ids.dims}
      const inputs = Object.fromEntries(contract.inputs.map((input) => [input, new ort.Tensor('int64', tokens[input].data, tokens[input].dims)]))
      raw.push(Array.from((await model.run(inputs)).probabilities.data))
    }
  }
  return {tensors: rows(logits.data, logits.dims), raw}
}

// The pipelines of transformers.js. It knows models of timm by no name of their own; any class with `pixel_values` will do.
export async function pipelines({hub, name, read, image}) {
  const contract = await json(read, 'autoft.json')
  const golden = await json(read, 'golden/golden.json')
  const images = contract.preprocessing.kind === 'image'
  const config = await json(read, 'config.json')
  const options = {dtype: 'fp32'}
  if (config.model_type === 'timm_wrapper') options.config = {...config, model_type: 'vit'}
  const classify = await hub.pipeline(images ? 'image-classification' : 'text-classification', name, options)
  const feeds = {}
  for (const input of contract.inputs) feeds[input] = new hub.Tensor(...(await array(read, `golden/${input}.npy`)))
  const {logits} = await classify.model(feeds)
  const raw = []
  for (const input of golden.inputs) {
    const answers = await classify(images ? await image(`golden/inputs/${input}`) : input, {top_k: contract.labels.length})
    raw.push(contract.labels.map((label) => answers.find((answer) => answer.label === label).score))
  }
  return {tensors: logits.tolist(), raw}
}

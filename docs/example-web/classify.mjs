// Runs autoft's bundles in a browser: images through their own graphs in onnxruntime-web, texts through transformers.js.

import * as ort from 'onnxruntime-web/webgpu'
import * as hub from '@huggingface/transformers'

ort.env.wasm.wasmPaths = new URL('./node_modules/onnxruntime-web/dist/', location).href
ort.env.wasm.numThreads = 1 // more need a page that is isolated by the headers COOP and COEP
hub.env.allowRemoteModels = false
hub.env.allowLocalModels = true
hub.env.localModelPath = './'

const loaded = new Map()
const once = (name, load) => loaded.get(name) ?? loaded.set(name, load()).get(name)

async function bytes(path) {
  const answer = await fetch(path)
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`)
  return new Uint8Array(await answer.arrayBuffer())
}

async function openImageBundle(folder) {
  const contract = JSON.parse(new TextDecoder().decode(await bytes(`${folder}/autoft.json`)))
  const open = async (file) => ort.InferenceSession.create(await bytes(`${folder}/${file}`), {executionProviders: ['wasm']})
  return {labels: contract.labels, preprocess: await open('onnx/preprocess.onnx'), model: await open('onnx/model.onnx')}
}

// The pixels as they are: no resizing here, which browsers do otherwise than training did. The bundle's own graph does it.
async function pixels(file) {
  const bitmap = await createImageBitmap(file, {colorSpaceConversion: 'none', premultiplyAlpha: 'none', imageOrientation: 'from-image'})
  const {width, height} = bitmap
  const context = new OffscreenCanvas(width, height).getContext('2d', {willReadFrequently: true})
  context.drawImage(bitmap, 0, 0)
  const {data} = context.getImageData(0, 0, width, height)
  const rgb = new Uint8Array(width * height * 3)
  for (let from = 0, to = 0; from < data.length; from += 4) {
    rgb[to++] = data[from]
    rgb[to++] = data[from + 1]
    rgb[to++] = data[from + 2]
  }
  return new ort.Tensor('uint8', rgb, [1, height, width, 3])
}

// The likeliest label of an image file, by the bundle in a folder beside this page.
export async function classifyImage(folder, file) {
  const {labels, preprocess, model} = await once(folder, () => openImageBundle(folder))
  const {pixel_values} = await preprocess.run({image: await pixels(file)})
  const {probabilities} = await model.run({pixel_values})
  const scores = Array.from(probabilities.data)
  const best = scores.indexOf(Math.max(...scores))
  return {label: labels[best], score: scores[best]}
}

// The likeliest label of a text.
export async function classifyText(folder, text) {
  const classify = await once(folder, () => hub.pipeline('text-classification', folder, {dtype: 'fp32'}))
  const [best] = await classify(text, {top_k: 1})
  return best
}

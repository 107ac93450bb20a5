// Prints what a JavaScript runtime answers to a bundle's golden inputs, as probe.py does.
//
//     node probe.mjs RUNTIME BUNDLE        in a folder with node_modules, as run.sh makes it
//
// RUNTIME: onnxruntime-node, transformers.js-node, onnxruntime-web or transformers.js-web; the latter two in headless Chromium.

import fs from 'node:fs'
import path from 'node:path'
import {graphs, pipelines} from './golden.mjs'
import {open} from './browser.mjs'

const [runtime, bundle] = [process.argv[2], path.resolve(process.argv[3])]
const version = (name) => JSON.parse(fs.readFileSync(`node_modules/${name}/package.json`)).version

async function inNode() {
  const hub = await import('@huggingface/transformers')
  hub.env.allowRemoteModels = false
  hub.env.localModelPath = path.dirname(bundle)
  const read = async (file) => new Uint8Array(fs.readFileSync(path.join(bundle, file)))
  const image = async (file) => (await hub.RawImage.read(path.join(bundle, file))).rgb()
  const given = {hub, name: path.basename(bundle), read, image}
  if (runtime === 'transformers.js-node') return {version: version('@huggingface/transformers'), ...(await pipelines(given))}
  const ort = await import('onnxruntime-node')
  return {version: version('onnxruntime-node'), ...(await graphs({ort, ...given}))}
}

// golden.mjs again, in a page that is served together with the bundle.
async function inBrowser() {
  const {page, url, close} = await open({'golden.mjs': 'golden.mjs', bundle, node_modules: 'node_modules', 'index.html': 'browser.html'})
  try {
    await page.goto(`${url}/index.html`)
    const answers = await page.evaluate((name) => globalThis.probe(name), runtime)
    return {version: version(runtime === 'onnxruntime-web' ? 'onnxruntime-web' : '@huggingface/transformers'), ...answers}
  } finally {
    await close()
  }
}

console.log(JSON.stringify(await (runtime.endsWith('-node') ? inNode() : inBrowser())))

// Opens docs/example-web in headless Chromium, chooses an image, types a sentence, and prints what the page says.
//
//     node page.mjs PAGE IMAGE_BUNDLE TEXT_BUNDLE IMAGE SENTENCE

import path from 'node:path'
import {open} from './browser.mjs'

const [folder, image, text, file, sentence] = process.argv.slice(2)
const {page, url, foreign, close} = await open({
  'index.html': path.join(folder, 'index.html'),
  'classify.mjs': path.join(folder, 'classify.mjs'),
  image,
  text,
  node_modules: 'node_modules',
})
const answer = async (id) => {
  await page.waitForFunction((id) => /\d\.\d{4}$|^error/.test(document.getElementById(id).textContent), {}, id)
  return page.$eval(`#${id}`, (output) => output.textContent)
}
try {
  await page.goto(`${url}/index.html`)
  await page.waitForSelector('body[data-ready]')
  await (await page.$('#file')).uploadFile(file)
  const ofImage = await answer('image-answer')
  await page.$eval('#text', (area, sentence) => { area.value = sentence }, sentence)
  await page.click('#ask')
  const ofText = await answer('text-answer')
  if (process.env.SCREENSHOT) await page.screenshot({path: process.env.SCREENSHOT})
  console.log(JSON.stringify({image: ofImage, text: ofText, foreign}))
} finally {
  await close()
}

// Serves files and opens a page in headless Chromium; nothing but these files can be reached.

import fs from 'node:fs'
import http from 'node:http'
import path from 'node:path'
import puppeteer from 'puppeteer-core'

const TYPES = {'.html': 'text/html', '.js': 'text/javascript', '.mjs': 'text/javascript', '.wasm': 'application/wasm', '.json': 'application/json'}

// `roots`: the first part of an address -> a file or folder.
export async function open(roots) {
  const server = http.createServer((request, response) => {
    const [first, ...rest] = decodeURIComponent(new URL(request.url, 'http://localhost').pathname).slice(1).split('/')
    const file = roots[first] && !rest.includes('..') ? path.join(roots[first], ...rest) : ''
    if (!file || !fs.existsSync(file) || fs.statSync(file).isDirectory()) {
      response.writeHead(404)
      response.end()
      return
    }
    response.writeHead(200, {'content-type': TYPES[path.extname(file)] ?? 'application/octet-stream'})
    fs.createReadStream(file).pipe(response)
  })
  await new Promise((listening) => server.listen(0, '127.0.0.1', listening))
  const url = `http://127.0.0.1:${server.address().port}`
  const browser = await puppeteer.launch({executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium', args: ['--no-sandbox', '--disable-gpu']})
  const page = await browser.newPage()
  page.setDefaultTimeout(240000)
  // stderr: stdout holds the answer
  page.on('console', (message) => console.error(`page: ${message.text()}`))
  page.on('pageerror', (error) => console.error(`page: ${error}`))
  const foreign = []
  page.on('request', (request) => {
    if (!/^(data:|blob:)/.test(request.url()) && !request.url().startsWith(url)) foreign.push(request.url())
  })
  return {
    page,
    url,
    foreign,
    close: async () => {
      await browser.close()
      server.closeAllConnections()
      server.close()
    },
  }
}

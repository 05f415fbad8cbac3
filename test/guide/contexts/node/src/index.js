const { createServer } = require('node:http')
const ms = require('ms')

createServer((_, response) => response.end(`a minute has ${ms('1m')} ms\n`)).listen(3000)

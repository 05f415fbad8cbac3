// What a compiler would do: src becomes dist.
const { cpSync } = require('node:fs')
cpSync('src', 'dist', { recursive: true })

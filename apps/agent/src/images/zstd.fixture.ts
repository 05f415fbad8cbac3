import { execFileSync } from 'node:child_process'

/** As `zstd` packs it. */
export const zstdTool = (bytes: Buffer): Buffer =>
  execFileSync('zstd', ['-q', '-c'], { input: bytes, maxBuffer: 1 << 28 })

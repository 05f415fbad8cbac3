// no-eval.ts: zod compiles schemas to code where it can, and to learn whether it can it tries, which the page's policy
// refuses and reports. To be imported before any schema is made.
import { z } from 'zod'

z.config({ jitless: true })

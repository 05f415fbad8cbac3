// given.ts: what a caller gives of a spec, before defaults are filled in: a template's values come between the two, and
// must not be hidden by a default. Defaults stay in the document.
import { z } from 'zod'

type Bare<T> =
  T extends z.ZodDefault<infer I>
    ? Bare<I>
    : T extends z.ZodPrefault<infer I>
      ? Bare<I>
      : T extends z.ZodOptional<infer I>
        ? Bare<I>
        : T extends z.ZodObject<infer S>
          ? z.ZodObject<Given<S>, z.core.$strict>
          : T

/** Fields of a spec, each optional and without its default; so are those of objects in it. */
export type Given<S extends z.ZodRawShape> = {
  -readonly [K in keyof S]: Bare<S[K]> extends z.core.SomeType ? z.ZodOptional<Bare<S[K]>> : never
}

interface Unwrapped {
  readonly inner: z.ZodType
  readonly about: Readonly<Record<string, unknown>>
}

function unwrapped(schema: z.ZodType, about: Unwrapped['about'] = {}): Unwrapped {
  const known = { ...schema.meta(), ...about }
  if (schema instanceof z.ZodDefault || schema instanceof z.ZodPrefault)
    return unwrapped(schema.unwrap() as z.ZodType, { default: schema.def.defaultValue, ...known })
  if (schema instanceof z.ZodOptional) return unwrapped(schema.unwrap() as z.ZodType, known)
  return { inner: schema, about: known }
}

function field(schema: z.ZodType): z.ZodType {
  const { inner, about } = unwrapped(schema)
  const whole = inner instanceof z.ZodObject ? given(inner.shape) : inner
  return whole.optional().meta(about)
}

/**
 * The schema of what is given of a spec with these fields. What it parses to is taken by the spec's own schema, which
 * fills in the rest and checks what concerns several fields.
 */
export function given<S extends z.ZodRawShape>(shape: S): z.ZodObject<Given<S>, z.core.$strict> {
  const fields = Object.entries(shape).map(([name, schema]) => [name, field(schema as z.ZodType)])
  return z.strictObject(Object.fromEntries(fields)) as z.ZodObject<Given<S>, z.core.$strict>
}

type Check<T> = (value: T, context: z.RefinementCtx<T>) => void

/** Checks that what is given comes to a spec as it is. */
export const whole =
  <T>(spec: z.ZodType): Check<T> =>
  (value, context) => {
    const told = new Set(context.issues.map(({ path }) => JSON.stringify(path)))
    const issues = spec.safeParse(value).error?.issues ?? []
    for (const { path, message } of issues.filter((issue) => !told.has(JSON.stringify(issue.path))))
      context.addIssue({ code: 'custom', path, message })
  }

/** The same, unless a template may give the rest. */
export const wholeUnlessTemplated =
  <T extends { readonly template?: string | undefined }>(spec: z.ZodType): Check<T> =>
  (value, context) => {
    if (value.template === undefined) whole<T>(spec)(value, context)
  }

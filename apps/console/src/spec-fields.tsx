// spec-fields.tsx: parts of a specification, to type and to read, that sandboxes and jobs have in common.
import { listImages, type Sandbox } from '@berth/contracts'
import { useCallback, useState } from 'react'
import { bytes } from './format.js'
import { useApi, useLoaded } from './live.js'
import { optionalLimits } from './spec-form.js'
import { Field } from './ui.js'

/** What a sandbox is called: its name, else the end of its id, which differs where the beginning is a time. */
export const titleOf = ({ id, name }: Pick<Sandbox, 'id' | 'name'>): string => name ?? `…${id.slice(-8)}`

export function Labels({ labels }: { readonly labels: Readonly<Record<string, string>> }) {
  const pairs = Object.entries(labels)
  if (pairs.length === 0) return null
  return (
    <span className="labels">
      {pairs.map(([key, value]) => (
        <span key={key}>{value === '' ? key : `${key}=${value}`}</span>
      ))}
    </span>
  )
}

/** Limits as they may be typed; empty ones are left at what they are, or at the default. */
export function LimitFields({ now }: { readonly now?: Sandbox['spec']['limits'] }) {
  const shown = (value: number | undefined, fallback: string) => (value === undefined ? fallback : bytes(value))
  return (
    <div className="columns narrow">
      <Field label="Memory" name="memory" field="limits.memoryBytes">
        {(input) => <input {...input} placeholder={shown(now?.memoryBytes, '512m')} autoComplete="off" />}
      </Field>
      <Field label="CPUs" name="cpus" field="limits.cpus">
        {(input) => <input {...input} placeholder={String(now?.cpus ?? 1)} inputMode="decimal" autoComplete="off" />}
      </Field>
      <Field label="Disk" name="disk" field="limits.diskBytes">
        {(input) => <input {...input} placeholder={shown(now?.diskBytes, '1g')} autoComplete="off" />}
      </Field>
      <Field label="Processes" name="pids" field="limits.pids">
        {(input) => <input {...input} placeholder={String(now?.pids ?? 256)} inputMode="numeric" autoComplete="off" />}
      </Field>
    </div>
  )
}

/** Limits that a sandbox need not have, filled with what they are. */
export function OptionalLimitFields({ now }: { readonly now: Sandbox['spec']['limits'] }) {
  const texts = optionalLimits(now)
  const [open] = useState(Object.values(texts).some((text) => text !== ''))
  return (
    <details open={open}>
      <summary>Soft memory limit, CPUs by number, weights</summary>
      <p className="hint">One that is emptied is unset.</p>
      <div className="columns halves">
        <Field label="Soft memory limit" name="reservation" field="limits.memoryReservationBytes">
          {(input) => <input {...input} defaultValue={texts.reservation} placeholder="none" autoComplete="off" />}
        </Field>
        <Field label="CPUs it may run on" name="cpuset" field="limits.cpuset">
          {(input) => <input {...input} defaultValue={texts.cpuset} placeholder="all" autoComplete="off" />}
        </Field>
        <Field label="CPU weight" name="cpuShares" field="limits.cpuShares">
          {(input) => (
            <input
              {...input}
              defaultValue={texts.cpuShares}
              placeholder="1024 a CPU"
              inputMode="numeric"
              autoComplete="off"
            />
          )}
        </Field>
        <Field label="CPU period, in µs" name="cpuPeriod" field="limits.cpuPeriodUs">
          {(input) => (
            <input
              {...input}
              defaultValue={texts.cpuPeriod}
              placeholder="100000"
              inputMode="numeric"
              autoComplete="off"
            />
          )}
        </Field>
        <Field label="Disk weight" name="ioWeight" field="limits.ioWeight">
          {(input) => (
            <input
              {...input}
              defaultValue={texts.ioWeight}
              placeholder="the kernel's"
              inputMode="numeric"
              autoComplete="off"
            />
          )}
        </Field>
      </div>
    </details>
  )
}

/** The image, with those that the nodes hold to choose from. */
export function ImageField() {
  const api = useApi()
  const load = useCallback(
    async (signal: AbortSignal) =>
      (await api.call(listImages, {}, { signal })).items.flatMap(({ references }) => references),
    [api],
  )
  const { value = [] } = useLoaded(load)
  const names = [...new Set(value.map((reference) => reference.replace(/:latest$/, '')))]
  return (
    <Field label="Image" name="image">
      {(input) => (
        <>
          <input {...input} list={`${input.id}-images`} placeholder="debian" spellCheck={false} autoComplete="off" />
          <datalist id={`${input.id}-images`}>
            {names.map((name) => (
              <option key={name} value={name} />
            ))}
          </datalist>
        </>
      )}
    </Field>
  )
}

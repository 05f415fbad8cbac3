// ui.tsx: the parts that pages are made of.
import { ApiError, type Violation } from '@berth/contracts'
import {
  Component,
  type ComponentProps,
  createContext,
  type FormEvent,
  type ReactNode,
  useCallback,
  useContext,
  useEffect,
  useId,
  useRef,
  useState,
} from 'react'
import { messageOf } from './api.js'
import { type Fields, FormProblem } from './spec-form.js'

/** A state as a word with a coloured mark; the word says all, the colour only helps. */
export function State({ state }: { readonly state: string }) {
  return <span className={`state state-${state}`}>{state.replaceAll('_', ' ')}</span>
}

export function Notice({
  kind = 'info',
  children,
}: {
  readonly kind?: 'info' | 'error' | 'good'
  readonly children: ReactNode
}) {
  return (
    <div className={`notice notice-${kind}`} role={kind === 'error' ? 'alert' : undefined}>
      {children}
    </div>
  )
}

/** What went wrong, and a way to try again; nothing where nothing did. */
export function Trouble({ error, retry }: { readonly error: unknown; readonly retry?: () => void }) {
  if (error === undefined) return null
  return (
    <Notice kind="error">
      <span>{messageOf(error)}</span>
      {retry && (
        <button type="button" className="small" onClick={retry}>
          Try again
        </button>
      )}
    </Notice>
  )
}

/** A page's heading, with what can be done beside it. */
export function Heading({ title, children }: { readonly title: ReactNode; readonly children?: ReactNode }) {
  return (
    <div className="heading">
      <h1>{title}</h1>
      {children && <div className="actions">{children}</div>}
    </div>
  )
}

export const Loading = () => (
  <p className="loading" role="status">
    Loading …
  </p>
)

/** Where a part of the page fails: a bug, or code of a version that the API no longer serves. The rest stays. */
export class Fallback extends Component<{ readonly children: ReactNode }, { readonly error: unknown }> {
  override state: { readonly error: unknown } = { error: undefined }

  static getDerivedStateFromError(error: unknown): { readonly error: unknown } {
    return { error: error ?? new Error('something went wrong') }
  }

  override render(): ReactNode {
    const { error } = this.state
    return error === undefined ? this.props.children : <Trouble error={error} retry={() => location.reload()} />
  }
}

export function Empty({ children }: { readonly children: ReactNode }) {
  return <p className="empty">{children}</p>
}

/** Names and values, those without a value left out. */
export function Facts({ facts }: { readonly facts: readonly (readonly [string, ReactNode])[] }) {
  return (
    <dl className="facts">
      {facts
        .filter(([, value]) => value !== null && value !== undefined && value !== '' && value !== false)
        .map(([name, value]) => (
          <div key={name}>
            <dt>{name}</dt>
            <dd>{value}</dd>
          </div>
        ))}
    </dl>
  )
}

type Tell = (text: string, kind?: 'good' | 'error') => void
const TellContext = createContext<Tell>(() => undefined)

/** Shows a line for some seconds, and has it read out. */
export const useTell = (): Tell => useContext(TellContext)

const TOLD_MS = 6000
const MOST_TOLD = 4

export function Telling({ children }: { readonly children: ReactNode }) {
  const [told, setTold] = useState<readonly { id: number; text: string; kind: 'good' | 'error' }[]>([])
  const next = useRef(0)
  const timers = useRef(new Set<ReturnType<typeof setTimeout>>())
  useEffect(() => {
    const all = timers.current
    return () => {
      for (const timer of all) clearTimeout(timer)
    }
  }, [])
  const tell = useCallback<Tell>((text, kind = 'good') => {
    const id = next.current++
    setTold((old) => [...old.slice(1 - MOST_TOLD), { id, text, kind }])
    const timer = setTimeout(() => {
      timers.current.delete(timer)
      setTold((old) => old.filter((one) => one.id !== id))
    }, TOLD_MS)
    timers.current.add(timer)
  }, [])
  return (
    <TellContext value={tell}>
      {children}
      <div className="told" role="status">
        {told.map(({ id, text, kind }) => (
          <p key={id} className={`told-${kind}`}>
            {text}
          </p>
        ))}
      </div>
    </TellContext>
  )
}

interface ActionProps extends Omit<ComponentProps<'button'>, 'onClick' | 'type'> {
  readonly act: () => Promise<unknown>
  /** Told when it has worked. */
  readonly done?: string
}

/** A button that cannot be pressed again while it works, and tells what went wrong. */
export function Action({ act, done, disabled, ...rest }: ActionProps) {
  const [busy, setBusy] = useState(false)
  const tell = useTell()
  const onClick = async () => {
    setBusy(true)
    try {
      await act()
      if (done) tell(done)
    } catch (error) {
      tell(messageOf(error), 'error')
    } finally {
      setBusy(false)
    }
  }
  return <button type="button" {...rest} disabled={disabled === true || busy} aria-busy={busy} onClick={onClick} />
}

/** A modal dialog: the browser keeps the focus in it, closes it on Escape and gives the focus back. */
export function Dialog({
  title,
  onClose,
  wide = false,
  children,
}: {
  readonly title: string
  readonly onClose: () => void
  readonly wide?: boolean
  readonly children: ReactNode
}) {
  const ref = useRef<HTMLDialogElement>(null)
  const id = useId()
  useEffect(() => {
    const dialog = ref.current
    dialog?.showModal()
    return () => dialog?.close()
  }, [])
  // The event comes late: what was closed may have been opened again, as React's development mode does on purpose.
  const closed = () => {
    if (!ref.current?.open) onClose()
  }
  return (
    <dialog ref={ref} className={wide ? 'wide' : ''} aria-labelledby={id} onClose={closed}>
      <header>
        <h2 id={id}>{title}</h2>
        <button type="button" className="plain" aria-label="Close" onClick={onClose}>
          ✕
        </button>
      </header>
      {children}
    </dialog>
  )
}

/** Asks before something is done that cannot be undone. */
export function Confirm({
  title,
  verb,
  act,
  onClose,
  children,
}: {
  readonly title: string
  readonly verb: string
  readonly act: () => Promise<unknown>
  readonly onClose: () => void
  readonly children: ReactNode
}) {
  return (
    <Dialog title={title} onClose={onClose}>
      <div className="dialog-body">{children}</div>
      <footer>
        <button type="button" onClick={onClose}>
          Cancel
        </button>
        <Action className="danger" act={() => act().then(onClose)}>
          {verb}
        </Action>
      </footer>
    </Dialog>
  )
}

const ProblemsContext = createContext<readonly Violation[]>([])

/** A labelled input with what is wrong with it below. `field` is its name in the API where that differs. */
export function Field({
  label,
  name,
  field = name,
  hint,
  children,
}: {
  readonly label: string
  readonly name: string
  readonly field?: string
  readonly hint?: string
  /** Gets id and aria attributes for the input. */
  readonly children: (input: {
    id: string
    name: string
    'aria-describedby': string
    'aria-invalid': boolean
  }) => ReactNode
}) {
  const id = useId()
  const wrong = useContext(ProblemsContext).filter((one) => concerns(one.field, field))
  return (
    <div className="field">
      <label htmlFor={id}>{label}</label>
      {children({ id, name, 'aria-describedby': `${id}-about`, 'aria-invalid': wrong.length > 0 })}
      <p id={`${id}-about`} className={wrong.length > 0 ? 'wrong' : 'hint'}>
        {wrong.length > 0 ? wrong.map(({ message }) => message).join('; ') : hint}
      </p>
    </div>
  )
}

/** Whether a violation at `at`, e.g. `limits.memoryBytes` or `jobs[3].command`, is about a field of the form. */
const concerns = (at: string, field: string): boolean =>
  at === field || at.startsWith(`${field}.`) || at.startsWith(`${field}[`)

/** A form that sends what was typed, and shows what is wrong with it at its fields or, where it is of none, at the end. */
export function Form({
  send,
  submit,
  onCancel,
  fields,
  children,
}: {
  readonly send: (fields: Fields) => Promise<unknown>
  readonly submit: string
  readonly onCancel?: () => void
  /** Names in the API of the fields that show their own problems. */
  readonly fields: readonly string[]
  readonly children: ReactNode
}) {
  const [busy, setBusy] = useState(false)
  const [error, setError] = useState<unknown>(undefined)
  const violations = violationsOf(error)
  const elsewhere = violations.filter(({ field }) => !fields.some((one) => concerns(field, one)))
  const onSubmit = async (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault()
    const form = event.currentTarget
    setBusy(true)
    setError(undefined)
    try {
      await send(fieldsOf(form))
    } catch (problem) {
      setError(problem)
      const first = violationsOf(problem)[0]
      if (first) requestAnimationFrame(() => form.querySelector<HTMLElement>('[aria-invalid="true"]')?.focus())
    } finally {
      setBusy(false)
    }
  }
  return (
    <form onSubmit={onSubmit} noValidate>
      <ProblemsContext value={violations}>
        <div className="dialog-body">
          {children}
          {error !== undefined && (violations.length === 0 || elsewhere.length > 0) && (
            <Notice kind="error">
              {violations.length === 0
                ? messageOf(error)
                : elsewhere.map(({ field, message }) => `${field}: ${message}`).join('; ')}
            </Notice>
          )}
        </div>
      </ProblemsContext>
      <footer>
        {onCancel && (
          <button type="button" onClick={onCancel}>
            Cancel
          </button>
        )}
        <button type="submit" className="primary" disabled={busy} aria-busy={busy}>
          {submit}
        </button>
      </footer>
    </form>
  )
}

/** The text fields of a form. */
function fieldsOf(form: HTMLFormElement): Fields {
  const fields: Record<string, string> = {}
  for (const [name, value] of new FormData(form)) if (typeof value === 'string') fields[name] = value
  return fields
}

function violationsOf(error: unknown): readonly Violation[] {
  if (error instanceof FormProblem) return [{ field: error.field, message: error.message }]
  return error instanceof ApiError ? error.violations : []
}

/** Copies a text, and says so. */
export function Copy({ text, label = 'Copy' }: { readonly text: string; readonly label?: string }) {
  const tell = useTell()
  const copy = async () => {
    if (await copyText(text)) tell('Copied.')
    else tell('The browser does not allow copying; select the text instead.', 'error')
  }
  return (
    <button type="button" className="small" onClick={copy}>
      {label}
    </button>
  )
}

/** Browsers have the clipboard on https only; a selection can be copied everywhere. */
async function copyText(text: string): Promise<boolean> {
  if (navigator.clipboard)
    return navigator.clipboard.writeText(text).then(
      () => true,
      () => false,
    )
  const area = document.createElement('textarea')
  area.value = text
  area.className = 'visually-hidden'
  const host = document.querySelector('dialog[open]') ?? document.body
  host.append(area)
  area.select()
  const copied = document.execCommand('copy')
  area.remove()
  return copied
}

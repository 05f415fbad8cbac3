// files.tsx: the files of a sandbox, running or not.
import {
  downloadTree,
  type FileStat,
  listFiles,
  makeDirectory,
  readFile,
  removeFile,
  renameFile,
  type Sandbox,
} from '@berth/contracts'
import { type DragEvent, useCallback, useRef, useState } from 'react'
import { useSearchParams } from 'wouter'
import { saveAs } from '../api.js'
import { bytes, counted, number, time } from '../format.js'
import { useApi, useLoaded } from '../live.js'
import { titleOf } from '../spec-fields.js'
import { type Fields } from '../spec-form.js'
import { Action, Confirm, Dialog, Empty, Field, Form, Loading, Trouble, useTell } from '../ui.js'
import { crumbsOf, joined, modeText, parentOf, resolved, sorted } from './paths.js'
import { droppedFiles, type UploadItem, UploadList, useUploads } from './uploads.js'

/** Entries of a directory that are listed at most. */
const MOST = 5000

type Open =
  | { readonly name: 'directory' }
  | { readonly name: 'rename' | 'delete' | 'view'; readonly entry: FileStat }
  | undefined

export function Files({ sandbox }: { readonly sandbox: Sandbox }) {
  const api = useApi()
  const { id } = sandbox
  const [search, setSearch] = useSearchParams()
  const path = search.get('path') ?? sandbox.spec.workingDir ?? '/'
  const go = (to: string) => setSearch({ path: to })
  const [open, setOpen] = useState<Open>()
  const params = { sandbox: id }
  const load = useCallback(
    async (signal: AbortSignal) => {
      const found: FileStat[] = []
      for await (const entry of api.values(listFiles, { params: { sandbox: id }, query: { path } }, { signal })) {
        found.push(entry)
        if (found.length >= MOST) break
      }
      return { entries: sorted(found), more: found.length >= MOST }
    },
    [api, id, path],
  )
  const { value, error, reload } = useLoaded(load)
  const uploads = useUploads(id, reload)
  const close = () => setOpen(undefined)
  const changed = () => {
    close()
    reload()
  }
  if (sandbox.state === 'deleted') return <Empty>Its files were deleted with it.</Empty>
  return (
    <>
      <div className="filters">
        <PathBar path={path} go={go} />
        <div className="actions">
          <UploadButton directory={path} add={uploads.add} />
          <button type="button" onClick={() => setOpen({ name: 'directory' })}>
            New directory
          </button>
          <Download
            name={`${titleOf(sandbox)}${path === '/' ? '' : path.replaceAll('/', '-')}.tar`}
            label="Download all"
          >
            {() => api.bytes(downloadTree, { params, query: { path } })}
          </Download>
        </div>
      </div>
      <UploadList items={uploads.items} cancel={uploads.cancel} clear={uploads.clear} />
      <Trouble error={error} retry={reload} />
      <DropZone directory={path} add={uploads.add}>
        {!value && error === undefined && <Loading />}
        {value && (
          <Listing
            entries={value.entries}
            path={path}
            go={go}
            act={(name, entry) => setOpen({ name, entry })}
            download={(entry) =>
              entry.kind === 'directory'
                ? api.bytes(downloadTree, { params, query: { path: entry.path } })
                : api.bytes(readFile, { params, query: { path: entry.path } })
            }
          />
        )}
        {value?.more && <p className="quiet">The directory has more than {number(MOST)} entries.</p>}
      </DropZone>
      {open?.name === 'directory' && (
        <NameDialog
          title="New directory"
          label="Name"
          initial=""
          submit="Make"
          onClose={close}
          send={(name) =>
            api.call(makeDirectory, { params, body: { path: resolved(path, name), parents: true } }).then(changed)
          }
        />
      )}
      {open?.name === 'rename' && (
        <NameDialog
          title={`Rename ${open.entry.name}`}
          label="Name, or path"
          initial={open.entry.name}
          submit="Rename"
          onClose={close}
          send={(name) =>
            api
              .call(renameFile, {
                params,
                body: { from: open.entry.path, to: resolved(path, name), replace: false },
              })
              .then(changed)
          }
        />
      )}
      {open?.name === 'delete' && (
        <Confirm
          title={`Delete ${open.entry.name}?`}
          verb="Delete"
          onClose={close}
          act={() =>
            api.call(removeFile, { params, query: { path: open.entry.path, recursive: 'true' } }).then(changed)
          }
        >
          <p>{open.entry.kind === 'directory' ? 'All that is in it is deleted too.' : 'It cannot be brought back.'}</p>
        </Confirm>
      )}
      {open?.name === 'view' && <View sandbox={id} entry={open.entry} onClose={close} />}
    </>
  )
}

function PathBar({ path, go }: { readonly path: string; readonly go: (to: string) => void }) {
  return (
    <nav className="path" aria-label="Directory">
      {crumbsOf(path).map((crumb, i, all) => (
        <button
          key={crumb.path}
          type="button"
          className="plain mono"
          aria-current={i === all.length - 1 ? 'location' : undefined}
          onClick={() => go(crumb.path)}
        >
          {i === 0 ? '/' : i === 1 ? crumb.name : `/ ${crumb.name}`}
        </button>
      ))}
    </nav>
  )
}

function Listing({
  entries,
  path,
  go,
  act,
  download,
}: {
  readonly entries: readonly FileStat[]
  readonly path: string
  readonly go: (to: string) => void
  readonly act: (name: 'rename' | 'delete' | 'view', entry: FileStat) => void
  readonly download: (entry: FileStat) => AsyncIterable<Uint8Array>
}) {
  if (entries.length === 0 && path === '/') return <Empty>The directory is empty.</Empty>
  const table = (
    <table className="files">
      <caption className="visually-hidden">{counted(entries.length, 'entry', 'entries')}</caption>
      <thead>
        <tr>
          <th scope="col">Name</th>
          <th scope="col">Size</th>
          <th scope="col" className="wide-only">
            Mode
          </th>
          <th scope="col" className="wide-only">
            Owner
          </th>
          <th scope="col" className="wide-only">
            Changed
          </th>
          <th scope="col">
            <span className="visually-hidden">Actions</span>
          </th>
        </tr>
      </thead>
      <tbody>
        {path !== '/' && (
          <tr>
            <th scope="row" colSpan={6}>
              <button type="button" className="plain" onClick={() => go(parentOf(path))}>
                ← up
              </button>
            </th>
          </tr>
        )}
        {entries.map((entry) => (
          <tr key={entry.name}>
            <th scope="row" className={`kind-${entry.kind}`}>
              <EntryName entry={entry} go={go} view={() => act('view', entry)} path={path} />
            </th>
            <td>{entry.kind === 'file' ? bytes(entry.sizeBytes) : ''}</td>
            <td className="mono wide-only">{modeText(entry)}</td>
            <td className="wide-only">
              {entry.uid}:{entry.gid}
            </td>
            <td className="quiet wide-only">{time(entry.modifiedAt)}</td>
            <td className="last">
              <div className="row-actions">
                {(entry.kind === 'file' || entry.kind === 'directory') && (
                  <Download
                    name={entry.kind === 'directory' ? `${entry.name}.tar` : entry.name}
                    label="Download"
                    about={entry.name}
                  >
                    {() => download(entry)}
                  </Download>
                )}
                <button
                  type="button"
                  className="small"
                  aria-label={`Rename ${entry.name}`}
                  onClick={() => act('rename', entry)}
                >
                  Rename
                </button>
                <button
                  type="button"
                  className="small"
                  aria-label={`Delete ${entry.name}`}
                  onClick={() => act('delete', entry)}
                >
                  Delete
                </button>
              </div>
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  )
  return (
    <>
      {table}
      {entries.length === 0 && <Empty>The directory is empty.</Empty>}
    </>
  )
}

function EntryName({
  entry,
  path,
  go,
  view,
}: {
  readonly entry: FileStat
  readonly path: string
  readonly go: (to: string) => void
  readonly view: () => void
}) {
  const { name, kind, target } = entry
  // A link may lead to either; as a directory it opens, and where it is none the sandbox says so.
  if (kind === 'directory' || kind === 'symlink')
    return (
      <button type="button" className="plain mono" onClick={() => go(joined(path, name))}>
        {name}
        {kind === 'directory' ? '/' : <span className="quiet"> → {target}</span>}
      </button>
    )
  if (kind !== 'file') return <span className="mono">{name}</span>
  return (
    <button type="button" className="plain mono" onClick={view}>
      {name}
    </button>
  )
}

function Download({
  name,
  label,
  about,
  children,
}: {
  readonly name: string
  readonly label: string
  readonly about?: string
  readonly children: () => AsyncIterable<Uint8Array>
}) {
  const [got, setGot] = useState<number>()
  const act = async () => {
    setGot(0)
    try {
      await saveAs(name, children(), setGot)
    } finally {
      setGot(undefined)
    }
  }
  return (
    <Action className={about === undefined ? '' : 'small'} act={act} aria-label={about && `${label} ${about}`}>
      {got === undefined ? label : bytes(got)}
    </Action>
  )
}

function UploadButton({
  directory,
  add,
}: {
  readonly directory: string
  readonly add: (items: readonly UploadItem[]) => void
}) {
  const input = useRef<HTMLInputElement>(null)
  const onChange = () => {
    const files = [...(input.current?.files ?? [])]
    add(files.map((file) => ({ file, path: joined(directory, file.name) })))
    // The same file may be chosen again.
    if (input.current) input.current.value = ''
  }
  return (
    <>
      <input ref={input} type="file" multiple hidden aria-label="Files to upload" onChange={onChange} />
      <button type="button" className="primary" onClick={() => input.current?.click()}>
        Upload
      </button>
    </>
  )
}

function DropZone({
  directory,
  add,
  children,
}: {
  readonly directory: string
  readonly add: (items: readonly UploadItem[]) => void
  readonly children: React.ReactNode
}) {
  const tell = useTell()
  const [over, setOver] = useState(false)
  const onDragOver = (event: DragEvent) => {
    if (!event.dataTransfer.types.includes('Files')) return
    event.preventDefault()
    setOver(true)
  }
  const onDrop = async (event: DragEvent) => {
    event.preventDefault()
    setOver(false)
    try {
      add(await droppedFiles(event.dataTransfer, directory))
    } catch {
      tell('The browser could not read what was dropped.', 'error')
    }
  }
  return (
    // biome-ignore lint/a11y/noStaticElementInteractions: dropping has the upload button as its equal for keyboards
    <div
      className={over ? 'drop over' : 'drop'}
      onDragOver={onDragOver}
      onDragLeave={() => setOver(false)}
      onDrop={onDrop}
    >
      {children}
    </div>
  )
}

function NameDialog({
  title,
  label,
  initial,
  submit,
  send,
  onClose,
}: {
  readonly title: string
  readonly label: string
  readonly initial: string
  readonly submit: string
  readonly send: (name: string) => Promise<unknown>
  readonly onClose: () => void
}) {
  return (
    <Dialog title={title} onClose={onClose}>
      <Form send={({ name = '' }: Fields) => send(name)} submit={submit} onCancel={onClose} fields={[]}>
        <Field label={label} name="name">
          {(input) => <input {...input} defaultValue={initial} required spellCheck={false} className="mono" />}
        </Field>
      </Form>
    </Dialog>
  )
}

/** What of a file is shown: more is for other tools. */
const VIEWED_BYTES = 256 * 1024

function View({
  sandbox,
  entry,
  onClose,
}: {
  readonly sandbox: string
  readonly entry: FileStat
  readonly onClose: () => void
}) {
  const api = useApi()
  const { path } = entry
  const empty = entry.sizeBytes === 0
  const load = useCallback(
    async (signal: AbortSignal) => {
      if (empty) return ''
      const headers = { range: `bytes=0-${VIEWED_BYTES - 1}` }
      const chunks: Uint8Array<ArrayBuffer>[] = []
      for await (const chunk of api.bytes(readFile, { params: { sandbox }, query: { path } }, { signal, headers }))
        chunks.push(new Uint8Array(chunk))
      const text = await new Blob(chunks).text()
      return text.includes('\0') ? undefined : text
    },
    [api, sandbox, path, empty],
  )
  const { value, error, loading, reload } = useLoaded(load)
  return (
    <Dialog title={entry.name} onClose={onClose} wide>
      <div className="dialog-body">
        <Trouble error={error} retry={reload} />
        {loading && <Loading />}
        {!loading && error === undefined && value === undefined && (
          <Empty>It is not text. Download it to see it.</Empty>
        )}
        {value === '' && <Empty>The file is empty.</Empty>}
        {/* biome-ignore lint/a11y/noNoninteractiveTabindex: a box that scrolls must be reachable by keyboard */}
        {value && <pre tabIndex={0}>{value}</pre>}
        {entry.sizeBytes > VIEWED_BYTES && (
          <p className="quiet">
            The first {bytes(VIEWED_BYTES)} of {bytes(entry.sizeBytes)}.
          </p>
        )}
      </div>
    </Dialog>
  )
}

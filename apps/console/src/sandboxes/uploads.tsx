// uploads.tsx: files on their way into a sandbox: a few at a time, each with its progress, each can be cancelled.
import { writeFile } from '@berth/contracts'
import { useCallback, useEffect, useRef, useState } from 'react'
import { isAbort, messageOf } from '../api.js'
import { bytes } from '../format.js'
import { useApi } from '../live.js'
import { joined } from './paths.js'

export interface UploadItem {
  readonly file: File
  /** Where it goes. */
  readonly path: string
}

type Progress =
  | { readonly name: 'waiting' }
  | { readonly name: 'sending'; readonly share: number }
  | { readonly name: 'done' }
  | { readonly name: 'failed'; readonly message: string }

interface Item extends UploadItem {
  readonly id: number
  readonly progress: Progress
}

const AT_ONCE = 2
/** Files in one list; more go as a tar. */
const MOST = 2000

export function useUploads(sandbox: string, onDone: () => void) {
  const api = useApi()
  const [items, setItems] = useState<readonly Item[]>([])
  const next = useRef(0)
  const running = useRef(new Map<number, AbortController>())
  const queue = useRef<{ readonly id: number; readonly item: UploadItem }[]>([])
  const done = useRef(onDone)
  useEffect(() => {
    done.current = onDone
  })
  const put = useCallback((id: number, progress: Progress) => {
    setItems((old) => old.map((item) => (item.id === id ? { ...item, progress } : item)))
  }, [])
  const pump = useCallback(() => {
    while (running.current.size < AT_ONCE) {
      const first = queue.current.shift()
      if (!first) return
      const { id, item } = first
      const ended = new AbortController()
      running.current.set(id, ended)
      put(id, { name: 'sending', share: 0 })
      api
        .upload(
          writeFile,
          { params: { sandbox }, query: { path: item.path, parents: 'true' } },
          { body: item.file, signal: ended.signal, onProgress: (share) => put(id, { name: 'sending', share }) },
        )
        .then(
          () => put(id, { name: 'done' }),
          (error: unknown) => put(id, { name: 'failed', message: isAbort(error) ? 'canceled' : messageOf(error) }),
        )
        .finally(() => {
          running.current.delete(id)
          if (running.current.size === 0 && queue.current.length === 0) done.current()
          pump()
        })
    }
  }, [api, sandbox, put])
  // Who leaves the page leaves nothing running behind it.
  useEffect(() => {
    const [all, waiting] = [running.current, queue.current]
    return () => {
      waiting.length = 0
      for (const one of all.values()) one.abort()
    }
  }, [])
  const add = useCallback(
    (added: readonly UploadItem[]) => {
      const numbered = added.slice(0, MOST).map((item) => ({ id: next.current++, item }))
      setItems((old) => [
        ...old,
        ...numbered.map(({ id, item }) => ({ ...item, id, progress: { name: 'waiting' } as const })),
      ])
      queue.current.push(...numbered)
      pump()
    },
    [pump],
  )
  const cancel = useCallback(
    (id: number) => {
      running.current.get(id)?.abort(new DOMException('canceled', 'AbortError'))
      const waiting = queue.current.findIndex((one) => one.id === id)
      if (waiting === -1) return
      queue.current.splice(waiting, 1)
      put(id, { name: 'failed', message: 'canceled' })
    },
    [put],
  )
  const clear = useCallback(() => setItems((old) => old.filter(({ progress }) => isUnderWay(progress))), [])
  return { items, add, cancel, clear }
}

const isUnderWay = ({ name }: Progress): boolean => name === 'waiting' || name === 'sending'

export function UploadList({
  items,
  cancel,
  clear,
}: {
  readonly items: readonly Item[]
  readonly cancel: (id: number) => void
  readonly clear: () => void
}) {
  if (items.length === 0) return null
  const left = items.filter(({ progress }) => isUnderWay(progress)).length
  return (
    <section className="card uploads" aria-label="Uploads">
      <header>
        <h2>{left > 0 ? `Uploading, ${left} to go` : 'Uploaded'}</h2>
        {left === 0 && (
          <button type="button" className="small" onClick={clear}>
            Clear
          </button>
        )}
      </header>
      <ul className="plain-list">
        {items.map(({ id, file, path, progress }) => (
          <li key={id}>
            <span className="mono clip">{path}</span>
            <span className="quiet">{bytes(file.size)}</span>
            {progress.name === 'sending' && <progress value={progress.share} aria-label={`Upload of ${file.name}`} />}
            {progress.name === 'waiting' && <span className="quiet">waiting</span>}
            {progress.name === 'done' && <span className="good">done</span>}
            {progress.name === 'failed' && <span className="wrong">{progress.message}</span>}
            {isUnderWay(progress) && (
              <button type="button" className="small" aria-label={`Cancel ${file.name}`} onClick={() => cancel(id)}>
                Cancel
              </button>
            )}
          </li>
        ))}
      </ul>
    </section>
  )
}

/** Files that were dropped, those in dropped directories with their paths. */
export async function droppedFiles(dropped: DataTransfer, directory: string): Promise<readonly UploadItem[]> {
  // The entries must be taken before the first await: after it the event's data is gone.
  const entries = [...dropped.items].flatMap((item) => item.webkitGetAsEntry() ?? [])
  const found: UploadItem[] = []
  for (const entry of entries) await collect(entry, directory, found)
  return found
}

async function collect(entry: FileSystemEntry, directory: string, into: UploadItem[]): Promise<void> {
  if (into.length >= MOST) return
  const path = joined(directory, entry.name)
  if (entry instanceof FileSystemFileEntry) {
    into.push({ path, file: await new Promise<File>((resolve, reject) => entry.file(resolve, reject)) })
  } else if (entry instanceof FileSystemDirectoryEntry) {
    const reader = entry.createReader()
    for (;;) {
      // Browsers give a hundred at a time, and none at the end.
      const some = await new Promise<FileSystemEntry[]>((resolve, reject) => reader.readEntries(resolve, reject))
      if (some.length === 0) return
      for (const one of some) await collect(one, path, into)
    }
  }
}

/** Requests to the server that this page came from, and to no other. */

export interface RegionName {
  atlas: string
  parcel: string
}
export type Source = { subject: string; trial: number } | { scan: string; volume: number }
export type Scan = Source & { without?: RegionName[] }

export interface ModelInfo {
  id: string
  mindllm: {
    has_encoding_model: boolean
    n_proposals: number
    num_queries: number
    num_fmri_tokens: number
    language_model: string
    question: string
    training_subjects: string[] | null
  }
}
export interface RegionInfo extends RegionName {
  n_voxels: number
}
export interface SubjectInfo {
  id: string
  n_trials: number
  n_voxels: number
  in_training: boolean | null
  regions: RegionInfo[]
}
export interface TrialInfo {
  trial: number
  session: string
  run: string | null
  split: string
  stimulus: string | null
  answers: string[] | null
}
export interface ScanInfo {
  id: string
  expires: number
  n_volumes: number
  n_voxels: number
  regions: RegionInfo[]
  warnings: string[]
}
export interface AnswerEvidence {
  log_likelihood_ratio: number | null
  evidence: number | null
  probability: number | null
  n_proposals: number | null
  alternatives: { text: string; evidence: number; probability: number }[] | null
  shuffled: { of: string; values: number[]; mean: number; sd: number; p_value: number } | null
  abstained: boolean | null
  abstain_below: number
  missing: { name: string; reason: string }[]
}
export interface WordInfo {
  word: number
  text: string
  log_likelihood: number
  at_zero: number
}
export interface RegionSum extends RegionInfo {
  voxel_fraction: number
  value: number
}
export interface RegionSums {
  data: RegionSum[]
  evidence?: number
  at_zero?: number
}
type Part = { type: 'text'; text: string } | { type: 'fmri'; fmri: Scan }
export interface Message {
  role: 'user' | 'assistant'
  content: string | Part[]
}

interface Chunk {
  choices?: { delta: { content: string | null }; finish_reason: string | null }[]
  mindllm?: AnswerEvidence | null
  error?: { message: string }
}

const TOKEN = 'mindllm-token'
const NO_TOKEN = 'The server answers with a token alone. Who started it can tell you one.'

/** The server refused a request; the message is its sentence. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message)
  }
}

/** The routes of the server. A refused token is asked for again, then the request is repeated. */
export class Api {
  private asking: Promise<string> | null = null

  /** `askToken` shows why a token is needed and returns one. */
  constructor(private readonly askToken: (reason: string) => Promise<string>) {}

  async models(): Promise<ModelInfo[]> {
    return (await this.json<{ data: ModelInfo[] }>('v1/models')).data
  }

  async subjects(): Promise<SubjectInfo[]> {
    return (await this.json<{ data: SubjectInfo[] }>('v1/subjects')).data
  }

  async trials(
    subject: string, offset: number, limit: number, split = '',
  ): Promise<{ data: TrialInfo[]; total: number }> {
    const options = new URLSearchParams({ offset: String(offset), limit: String(limit) })
    if (split) options.set('split', split)
    return this.json(`v1/subjects/${encodeURIComponent(subject)}/trials?${options}`)
  }

  async scans(): Promise<ScanInfo[]> {
    return (await this.json<{ data: ScanInfo[] }>('v1/scans')).data
  }

  async removeScan(id: string): Promise<void> {
    await this.json(`v1/scans/${encodeURIComponent(id)}`, { method: 'DELETE' })
  }

  async words(body: object, signal?: AbortSignal): Promise<WordInfo[]> {
    return (await this.json<{ data: WordInfo[] }>('v1/explain/words', post(body, signal))).data
  }

  async regions(path: string, body: object, signal?: AbortSignal): Promise<RegionSums> {
    return this.json(`v1/explain/${path}/regions`, post(body, signal))
  }

  async image(path: string, body: object, signal?: AbortSignal): Promise<ArrayBuffer> {
    return (await this.request(`v1/explain/${path}`, post(body, signal))).arrayBuffer()
  }

  async template(): Promise<ArrayBuffer> {
    return (await this.request('v1/template')).arrayBuffer()
  }

  /** Asks a question; `onText` gets the pieces of the answer. */
  async chat(
    body: object, onText: (piece: string) => void, signal: AbortSignal,
  ): Promise<AnswerEvidence | null> {
    const request = post({ ...body, stream: true }, signal)
    const response = await this.request('v1/chat/completions', request)
    let evidence: AnswerEvidence | null = null
    let isComplete = false
    for await (const data of events(response)) {
      if (data === '[DONE]') {
        isComplete = true
        break
      }
      const chunk = JSON.parse(data) as Chunk
      if (chunk.error) throw new ApiError(500, chunk.error.message)
      const piece = chunk.choices?.[0]?.delta.content
      if (piece) onText(piece)
      evidence = chunk.mindllm ?? evidence
    }
    if (!isComplete) throw new ApiError(0, 'The server broke the answer off; ask again.')
    return evidence
  }

  /** Sends a scan; `onProgress` gets the sent fraction. */
  async upload(
    form: FormData, onProgress: (fraction: number) => void, signal: AbortSignal,
  ): Promise<ScanInfo> {
    for (;;) {
      const { status, text } = await send(form, onProgress, signal)
      if (status === 401) {
        await this.renewToken()
        continue
      }
      if (status !== 201) throw new ApiError(status, message(text, status))
      return JSON.parse(text) as ScanInfo
    }
  }

  private async json<T>(path: string, init: RequestInit = {}): Promise<T> {
    return (await (await this.request(path, init)).json()) as T
  }

  private async request(path: string, init: RequestInit = {}): Promise<Response> {
    for (;;) {
      const sent = sessionStorage.getItem(TOKEN)
      let response: Response
      try {
        response = await fetch(path, { ...init, headers: { ...init.headers, ...authorization() } })
      } catch (error) {
        if (error instanceof DOMException && error.name === 'AbortError') throw error
        throw new ApiError(0, 'The server does not answer; see whether it still runs.')
      }
      if (response.ok) return response
      const text = message(await response.text(), response.status)
      if (response.status === 401) {
        if (sessionStorage.getItem(TOKEN) === sent) await this.renewToken()
        continue
      }
      const wait = response.headers.get('Retry-After')
      const advice = response.status === 429 && wait ? ` Ask again in ${wait} seconds.` : ''
      throw new ApiError(response.status, text + advice)
    }
  }

  /** Asks for a token once, however many requests wait for it. */
  private async renewToken(): Promise<void> {
    const hadToken = sessionStorage.getItem(TOKEN) !== null
    sessionStorage.removeItem(TOKEN)
    this.asking ??= this.askToken(hadToken ? 'The server does not know this token.' : NO_TOKEN)
    try {
      sessionStorage.setItem(TOKEN, await this.asking)
    } finally {
      this.asking = null
    }
  }
}

function post(body: object, signal?: AbortSignal): RequestInit {
  const headers = { 'Content-Type': 'application/json' }
  return { method: 'POST', headers, body: JSON.stringify(body), signal: signal ?? null }
}

function authorization(): Record<string, string> {
  const token = sessionStorage.getItem(TOKEN)
  return token === null ? {} : { Authorization: `Bearer ${token}` }
}

/** The sentence of an error, in OpenAI's format. */
function message(text: string, status: number): string {
  try {
    const content = JSON.parse(text) as { error?: { message?: unknown } }
    if (typeof content.error?.message === 'string') return content.error.message
  } catch {
    // not of this server: a proxy between answers in its own format
  }
  return `The server answered with status ${status}.`
}

/** The data of server-sent events. */
async function* events(response: Response): AsyncGenerator<string> {
  if (response.body === null) return
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader()
  let rest = ''
  for (;;) {
    const { value, done } = await reader.read()
    if (done) return
    const parts = (rest + value).split(/\r?\n\r?\n/)
    rest = parts.pop() ?? ''
    for (const part of parts) {
      const lines = part.split(/\r?\n/).filter((line) => line.startsWith('data:'))
      if (lines.length > 0) yield lines.map((line) => line.slice(5).trimStart()).join('\n')
    }
  }
}

/** fetch does not tell how much of a request has been sent. */
function send(
  form: FormData, onProgress: (fraction: number) => void, signal: AbortSignal,
): Promise<{ status: number; text: string }> {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest()
    request.open('POST', 'v1/scans')
    for (const [name, value] of Object.entries(authorization())) {
      request.setRequestHeader(name, value)
    }
    request.upload.onprogress = (event) => {
      if (event.lengthComputable) onProgress(event.loaded / event.total)
    }
    request.onload = () => resolve({ status: request.status, text: request.responseText })
    request.onerror = () =>
      reject(new ApiError(0, 'The server did not take the files; see whether it still runs.'))
    request.onabort = () => reject(new DOMException('', 'AbortError'))
    signal.addEventListener('abort', () => request.abort())
    request.send(form)
  })
}

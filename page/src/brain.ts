/** Where in the brain: a map on slices, and its sums per region in a table. */

import type { Api, ModelInfo, RegionSum, RegionSums, Scan } from './api'
import { announce, bar, byId, el, newId, number, percent, showError } from './dom'
import { head } from './evidence'
import type { Kind, Range, View, Viewer } from './viewer'

/** What a map shows. */
interface MapRequest {
  path: 'attention' | 'evidence' | 'words'
  body: object
  title: string
  unit: string
  kind: Kind
}

const ROWS = 12
const OTHER = 'other' // of the maps, one that the list does not hold
let template: Promise<ArrayBuffer> | null = null

/** The brain of one scan. */
export class BrainPanel {
  readonly element: HTMLElement
  private scan: Scan | null = null
  private label = ''
  private viewer: Promise<Viewer> | null = null
  private running: AbortController | null = null
  private sums: RegionSums | null = null
  private shown: MapRequest | null = null
  private isComplete = false
  private range: Range | null = null

  private readonly heading = el('h3', { tabindex: '-1' })
  private readonly canvas = el('canvas', { role: 'img', 'aria-label': 'Brain; no map yet' })
  private readonly caption = el('p', { class: 'caption' })
  private readonly location = el('p', { class: 'note location' })
  private readonly error = el('p', { class: 'error', role: 'alert', hidden: true })
  private readonly progress = el('p')
  private readonly cancel = el('button', { type: 'button', class: 'quiet' }, 'Cancel')
  private readonly busy = el('div', { class: 'busy', hidden: true }, this.progress, this.cancel)
  private readonly listening = el('select')
  private readonly threshold = el('input', { type: 'range', min: 0, max: 90, step: 5, value: 20 })
  private readonly view = el('select')
  private readonly atlas = el('select')
  private readonly table = el('div', { class: 'scroll' })

  constructor(
    private readonly api: Api,
    private readonly model: ModelInfo,
  ) {
    this.element = el('section', { class: 'brain', hidden: true }, ...this.parts())
    this.cancel.addEventListener('click', () => this.stop())
    this.listening.addEventListener('change', () => void this.showAttention())
    this.threshold.addEventListener('input', () => void this.applyThreshold())
    this.view.addEventListener('change', () => void this.applyView())
    this.atlas.addEventListener('change', () => this.showTable())
  }

  private parts(): HTMLElement[] {
    const { num_fmri_tokens: tokens, num_queries: queries } = this.model.mindllm
    this.listening.append(el('option', { value: OTHER, hidden: true }, 'another map is shown'))
    this.listening.append(el('option', { value: '' }, `all ${queries} queries, mean`))
    for (let token = 0; token < tokens; token++) {
      this.listening.append(el('option', { value: token }, `token ${token}`))
    }
    this.view.append(
      el('option', { value: 'slices' }, 'slices'),
      el('option', { value: 'surface' }, 'whole brain'),
    )
    const hint = newId('hint')
    this.canvas.setAttribute('tabindex', '0')
    this.canvas.setAttribute('aria-describedby', hint)
    return [
      this.heading,
      el(
        'div',
        { class: 'row' },
        labelled('Where it listens', this.listening),
        labelled('View', this.view),
        labelled('Hide weak voxels', this.threshold),
      ),
      this.error,
      this.busy,
      el('div', { class: 'canvas' }, this.canvas),
      this.caption,
      this.location,
      el(
        'p',
        { class: 'note', id: hint },
        'Arrow keys and Page Up or Page Down move the crosshair; with Shift by five.',
      ),
      el('div', { class: 'row' }, labelled('Regions of', this.atlas)),
      this.table,
    ]
  }

  /** Makes the panel that of a scan, and shows where the model listens there. */
  async open(scan: Scan, label: string): Promise<void> {
    const isNew = JSON.stringify(scan) !== JSON.stringify(this.scan)
    this.element.hidden = false
    if (!isNew) return
    this.scan = scan
    this.label = label
    this.heading.textContent = label
    this.listening.value = ''
    await this.showAttention()
  }

  /** Ends what is being computed, on the server too; an earlier map stays. */
  private stop(): void {
    this.running?.abort()
    announce('Cancelled.')
    this.heading.focus()
  }

  close(): void {
    this.running?.abort()
    this.element.hidden = true
    this.scan = null
  }

  /** Voxels that a word of an answer came from. */
  async showWord(
    scan: Scan, label: string, answer: string, question: string | null, word: number, text: string,
  ): Promise<void> {
    this.adopt(scan, label)
    this.listening.value = OTHER
    await this.show({
      path: 'words',
      body: { answer, question, word },
      title: `Voxels that the word “${text}” came from`,
      unit: 'nats per voxel',
      kind: 'signed',
    })
  }

  /** Voxels that speak for or against a text. */
  async showEvidence(scan: Scan, label: string, text: string): Promise<void> {
    this.adopt(scan, label)
    this.listening.value = OTHER
    await this.show({
      path: 'evidence',
      body: { text },
      title: `Voxels that speak for “${text}”`,
      unit: 'nats per voxel',
      kind: 'signed',
    })
  }

  private adopt(scan: Scan, label: string): void {
    this.scan = scan
    this.label = label
    this.element.hidden = false
    this.heading.textContent = label
    this.heading.scrollIntoView({ block: 'nearest' })
  }

  private async showAttention(): Promise<void> {
    const token = this.listening.value
    await this.show({
      path: 'attention',
      body: token === '' ? {} : { token: Number(token) },
      title: token === '' ? 'Where the model listens' : `Where fMRI token ${token} listens`,
      unit: 'times uniform attention',
      kind: 'attention',
    })
  }

  private async show(request: MapRequest): Promise<void> {
    this.running?.abort()
    const running = new AbortController()
    this.running = running
    const earlier = this.isComplete ? this.shown : null
    this.shown = request
    this.isComplete = false
    showError(this.error, null)
    this.element.setAttribute('aria-busy', 'true')
    this.busy.hidden = false
    const patience = request.path === 'words' ? ' This takes from seconds to a minute or two.' : ''
    const start = Date.now()
    const tell = (): void => {
      const seconds = Math.round((Date.now() - start) / 1000)
      this.progress.textContent = `Computing: ${request.title}. ${seconds} s.${patience}`
    }
    tell()
    const clock = setInterval(tell, 1000)
    const body = { model: this.model.id, fmri: this.scan, ...request.body }
    const path = request.path === 'words' ? 'words/map' : request.path
    try {
      const image = await this.api.image(path, { ...body, space: 'mni' }, running.signal)
      // afterwards, since the server keeps the map of a word
      const sums = await this.api.regions(request.path, body, running.signal)
      if (running.signal.aborted) return
      this.sums = sums
      this.showAtlases()
      await this.draw(image, request)
      this.isComplete = true
      announce(`${request.title}, ${this.label}: shown.`)
    } catch (error) {
      if (!running.signal.aborted) showError(this.error, error)
    } finally {
      clearInterval(clock)
      if (this.running === running) {
        this.element.setAttribute('aria-busy', 'false')
        this.busy.hidden = true
        if (running.signal.aborted) {
          this.shown = earlier
          this.isComplete = earlier !== null
        }
      }
    }
  }

  private async draw(image: ArrayBuffer, request: MapRequest): Promise<void> {
    const viewer = await this.getViewer()
    const range = await viewer.show(image, request.kind, Number(this.threshold.value) / 100)
    this.describe(request, range, await this.applyThreshold())
    viewer.goToPeak()
  }

  private describe(request: MapRequest, range: Range, limit: number): void {
    const signed = request.kind === 'signed'
    const text =
      `${request.title}. From ${number(range.min)} to ${number(range.max)} ${request.unit}; ` +
      (signed ? 'for: orange to yellow; against: blue to green. ' : 'more: from blue to yellow. ') +
      `Shown ${signed ? 'beyond ±' : 'from '}${number(limit)}.`
    this.caption.textContent = text
    this.canvas.setAttribute('aria-label', `${this.label}: ${text} The table has its regions.`)
    this.range = range
  }

  private getViewer(): Promise<Viewer> {
    this.viewer ??= this.createViewer().catch((error: unknown) => {
      this.viewer = null
      throw error
    })
    return this.viewer
  }

  private async createViewer(): Promise<Viewer> {
    template ??= this.api.template().catch((error: unknown) => {
      template = null
      throw error
    })
    const [{ Viewer }, anatomy] = await Promise.all([import('./viewer'), template])
    return Viewer.create(this.canvas, anatomy, (mm, value) => {
      const position = mm.map((coordinate) => coordinate.toFixed(0).replace('-', '−')).join(', ')
      const unit = this.shown?.unit ?? ''
      const text = value ? `${number(value)} ${unit}` : 'no value'
      this.location.textContent = `Crosshair at MNI ${position} mm: ${text}.`
    })
  }

  private async applyThreshold(): Promise<number> {
    const fraction = Number(this.threshold.value) / 100
    this.threshold.setAttribute('aria-valuetext', percent(fraction))
    if (this.viewer === null) return fraction
    const limit = (await this.viewer).setThreshold(fraction)
    if (this.isComplete && this.shown && this.range) this.describe(this.shown, this.range, limit)
    return limit
  }

  private async applyView(): Promise<void> {
    if (this.viewer) (await this.viewer).setView(this.view.value as View)
  }

  private showAtlases(): void {
    const names = [...new Set(this.sums?.data.map((row) => row.atlas))]
    const before = this.atlas.value
    this.atlas.replaceChildren(...names.map((name) => el('option', { value: name }, name)))
    if (names.includes(before)) this.atlas.value = before
    this.showTable()
  }

  private showTable(): void {
    if (this.sums === null || this.shown === null) return
    const isAttention = this.shown.kind === 'attention'
    const rows = this.sums.data.filter((row) => row.atlas === this.atlas.value)
    rows.sort((a, b) => Math.abs(b.value) - Math.abs(a.value))
    const most = Math.max(...rows.map((row) => Math.abs(row.value)), 1e-12)
    const title = `${this.shown.title}: ${Math.min(ROWS, rows.length)} of ${rows.length} regions`
    const columns = isAttention ? ['Attention'] : ['Sum (nats)']
    const makeRow = (row: RegionSum): HTMLElement =>
      el(
        'tr',
        {},
        el('th', { scope: 'row' }, row.parcel),
        el('td', { class: 'number' }, `${row.n_voxels} (${percent(row.voxel_fraction)})`),
        el(
          'td',
          { class: 'with-bar' },
          isAttention ? percent(row.value) : number(row.value),
          bar(Math.abs(row.value) / most, row.value < 0 ? 'against' : 'plain'),
        ),
      )
    const body = el('tbody', {}, ...rows.slice(0, ROWS).map(makeRow))
    const caption = el('caption', {}, title)
    const all = el('button', { type: 'button', class: 'quiet' }, `Show all ${rows.length} regions`)
    all.addEventListener('click', () => {
      body.append(...rows.slice(ROWS).map(makeRow))
      caption.textContent = `${this.shown?.title ?? ''}: all ${rows.length} regions`
      all.remove()
      this.table.focus()
    })
    this.table.setAttribute('tabindex', '0')
    this.table.setAttribute('role', 'region')
    this.table.setAttribute('aria-label', `Regions of ${this.label}`)
    this.table.replaceChildren(
      el('table', {}, caption, head('Region', 'Voxels', ...columns), body),
      ...(rows.length > ROWS ? [all] : []),
    )
  }
}

/** A control with its label. */
export function labelled(text: string, control: HTMLElement): HTMLElement {
  control.id ||= newId('control')
  return el('div', { class: 'field' }, el('label', { for: control.id }, text), control)
}

/** The two brains beside each other. */
export function placeBrains(panels: BrainPanel[]): void {
  byId('brains').replaceChildren(...panels.map((panel) => panel.element))
}

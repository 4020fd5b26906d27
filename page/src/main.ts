/** The page: choose a scan, ask, see what speaks for the answer and where it comes from. */

import { Api } from './api'
import type { ModelInfo, RegionInfo, Scan } from './api'
import { BrainPanel, placeBrains } from './brain'
import { Conversation, defaultQuestion } from './conversation'
import type { Addressee } from './conversation'
import { announce, byId, showError } from './dom'
import { ScanPicker } from './picker'
import type { Catalog } from './picker'
import { RegionChooser } from './regions'
import { installTheme } from './theme'
import { askToken } from './token'
import { Upload } from './upload'

class Page {
  private readonly brains: [BrainPanel, BrainPanel]
  private readonly pickers: [ScanPicker, ScanPicker]
  private readonly regions = new RegionChooser()
  private readonly conversation: Conversation
  private readonly compare = byId<HTMLInputElement>('compare')
  private readonly question = byId<HTMLTextAreaElement>('question')
  private readonly follow = byId<HTMLInputElement>('follow')
  private readonly submit = byId<HTMLButtonElement>('submit')
  private readonly stop = byId<HTMLButtonElement>('stop')
  private readonly error = byId('ask-error')

  constructor(
    api: Api,
    private readonly model: ModelInfo,
    private readonly catalog: Catalog,
  ) {
    this.conversation = new Conversation(api, model)
    this.brains = [new BrainPanel(api, model), new BrainPanel(api, model)]
    placeBrains(this.brains)
    const changed = (): void => this.onScanChange()
    const removed = (id: string): void => this.onRemoved(id)
    this.pickers = [
      new ScanPicker(api, catalog, 'Scan', changed, removed),
      new ScanPicker(api, catalog, 'Other scan', changed, removed),
    ]
    this.pickers[1].element.hidden = true
    byId('pickers').append(...this.pickers.map((picker) => picker.element))
    byId('regions').append(this.regions.element)
    this.question.value = defaultQuestion(model)
    new Upload(api, (scan) => {
      catalog.scans.push(scan)
      this.pickers[0].fill(`scan ${scan.id}`)
      this.pickers[1].fill()
      announce('The scan is read and chosen.')
    })
    this.listen()
    this.onScanChange()
  }

  private listen(): void {
    byId('ask').addEventListener('submit', (event) => {
      event.preventDefault()
      void this.ask()
    })
    this.stop.addEventListener('click', () => this.conversation.stop())
    this.question.addEventListener('keydown', (event) => {
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return
      event.preventDefault()
      if (!this.submit.disabled) void this.ask()
    })
    this.compare.addEventListener('change', () => {
      this.pickers[1].element.hidden = !this.compare.checked
      byId('columns').classList.toggle('comparing', this.compare.checked)
      if (this.compare.checked) {
        this.pickers[1].chooseAnother(this.pickers[0])
        this.pickers[1].focus()
      } else {
        this.brains[1].close()
      }
      this.onScanChange()
    })
    byId('show-brain').addEventListener('click', () => this.showBrains())
  }

  private get active(): { picker: ScanPicker; brain: BrainPanel }[] {
    const all = this.pickers.map((picker, i) => ({ picker, brain: this.brains[i] as BrainPanel }))
    return this.compare.checked ? all : all.slice(0, 1)
  }

  /** The regions are those of all chosen scans; a follow-up needs an answer about them. */
  private onScanChange(): void {
    if (!this.pickers) return
    const regions = new Map<string, RegionInfo>()
    for (const { picker } of this.active) {
      for (const region of picker.regions()) {
        const key = `${region.atlas}\n${region.parcel}`
        if (!regions.has(key)) regions.set(key, region)
      }
    }
    this.regions.setRegions([...regions.values()])
    this.offerFollowUp()
  }

  private offerFollowUp(): void {
    const addressees = this.addressees()
    const scans = addressees?.map(({ scan }) => scan) ?? []
    const isPossible = this.conversation.canFollowUp(scans)
    byId('follow-field').hidden = !isPossible
    if (!isPossible) this.follow.checked = false
  }

  private onRemoved(id: string): void {
    this.catalog.scans = this.catalog.scans.filter((scan) => scan.id !== id)
    for (const picker of this.pickers) picker.fill()
    announce('The scan is removed.')
  }

  /** Every chosen scan, and again without the regions that are off; null: one is not chosen. */
  private addressees(): Addressee[] | null {
    const result: Addressee[] = []
    for (const { picker, brain } of this.active) {
      const source = picker.source()
      if (source === null) return null
      const label = picker.label()
      result.push({ scan: source, label, brain })
      const without = this.regions.without(picker.regions())
      if (without.length > 0) {
        const scan: Scan = { ...source, without }
        const names = without.length === 1 ? without[0]?.parcel : `${without.length} regions`
        result.push({ scan, label: `${label}, without ${names ?? ''}`, brain })
      }
    }
    return result
  }

  private showBrains(): void {
    for (const { picker, brain } of this.active) {
      const source = picker.source()
      if (source) void brain.open(source, picker.label())
    }
  }

  private async ask(): Promise<void> {
    showError(this.error, null)
    const addressees = this.addressees()
    if (addressees === null) return
    const text = this.question.value.trim()
    if (text === '') {
      showError(this.error, 'Type a question.')
      this.question.focus()
      return
    }
    const question = text === defaultQuestion(this.model) ? null : text
    this.submit.disabled = true
    this.stop.hidden = false
    announce('The question is asked.')
    try {
      await this.conversation.ask(question, addressees, this.follow.checked)
    } finally {
      this.submit.disabled = false
      this.stop.hidden = true
      this.offerFollowUp()
    }
  }
}

async function start(): Promise<void> {
  installTheme()
  const api = new Api(askToken)
  try {
    const [model] = await api.models()
    if (!model) throw new Error('The server has no model.')
    const [subjects, scans] = await Promise.all([api.subjects(), api.scans()])
    const facts = model.mindllm
    byId('model').textContent = facts.has_encoding_model
      ? `${model.id} with ${facts.language_model}; ${facts.n_proposals} known texts`
      : `${model.id} with ${facts.language_model}; it has no encoding model, so no evidence`
    const main = document.querySelector('main')
    if (main) main.hidden = false
    new Page(api, model, { subjects, scans })
  } catch (error) {
    byId('model').textContent = ''
    showError(byId('fatal'), error)
  }
}

void start()

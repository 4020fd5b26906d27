/** Chooses a scan: a trial of the store, or a volume of a scan that was sent. */

import type { Api, RegionInfo, ScanInfo, Source, SubjectInfo } from './api'
import { labelled } from './brain'
import { el, showError } from './dom'

/** The scans that there are, for all choosers. */
export interface Catalog {
  subjects: SubjectInfo[]
  scans: ScanInfo[]
}

export class ScanPicker {
  readonly element: HTMLElement
  private readonly who = el('select')
  private readonly index = el('input', { type: 'number', min: 0, value: 0, inputmode: 'numeric' })
  private readonly facts = el('p', { class: 'note' })
  private readonly error = el('p', { class: 'error', role: 'alert', hidden: true })
  private readonly test = el('button', { type: 'button', class: 'quiet' }, 'Random test trial')
  private readonly remove = el('button', { type: 'button', class: 'quiet' }, 'Remove this scan')
  private readonly indexField: HTMLElement
  private asked = 0

  constructor(
    private readonly api: Api,
    private readonly catalog: Catalog,
    name: string,
    private readonly onChange: () => void,
    private readonly onRemoved: (id: string) => void,
  ) {
    this.indexField = labelled('Trial', this.index)
    this.element = el(
      'fieldset',
      {},
      el('legend', {}, name),
      el('div', { class: 'row' }, labelled('Subject or sent scan', this.who), this.indexField),
      el('div', { class: 'row' }, this.test, this.remove),
      this.facts,
      this.error,
    )
    this.who.addEventListener('change', () => {
      this.index.value = '0'
      this.refresh()
    })
    this.index.addEventListener('change', () => this.refresh())
    this.test.addEventListener('click', () => void this.chooseTestTrial())
    this.remove.addEventListener('click', () => void this.removeScan())
    this.fill()
  }

  /** Lists the scans anew; what was chosen stays so if it is still there. */
  fill(choose?: string): void {
    const before = choose ?? this.who.value
    const groups: HTMLElement[] = []
    if (this.catalog.subjects.length > 0) {
      const options = this.catalog.subjects.map(({ id, in_training: trained }) =>
        el('option', { value: `subject ${id}` }, trained === false ? `${id} (new to the model)` : id),
      )
      groups.push(el('optgroup', { label: 'Subjects of the store' }, ...options))
    }
    if (this.catalog.scans.length > 0) {
      const options = this.catalog.scans.map(({ id, n_volumes }) =>
        el('option', { value: `scan ${id}` }, `${id} (${n_volumes} volumes)`),
      )
      groups.push(el('optgroup', { label: 'Sent scans' }, ...options))
    }
    this.who.replaceChildren(...groups)
    const values = [...this.who.options].map((option) => option.value)
    if (values.includes(before)) this.who.value = before
    this.refresh()
  }

  /** Chooses another subject than the first, to compare with. */
  chooseAnother(than: ScanPicker): void {
    const other = [...this.who.options].find((option) => option.value !== than.who.value)
    if (other) this.who.value = other.value
    this.refresh()
  }

  /** The chosen scan; null: there is none, which is said at the place. */
  source(): Source | null {
    const { subject, scan } = this.chosen()
    const [count, index] = [subject?.n_trials ?? scan?.n_volumes ?? 0, this.index.valueAsNumber]
    if (!subject && !scan) {
      showError(this.error, 'There is no scan yet; send one below.')
      return null
    }
    if (!Number.isInteger(index) || index < 0 || index >= count) {
      const what = subject ? `${subject.id} has ${count} trials` : `The scan has ${count} volumes`
      showError(this.error, `${what}, from 0 to ${count - 1}; choose one of them.`)
      this.index.setAttribute('aria-invalid', 'true')
      return null
    }
    showError(this.error, null)
    this.index.removeAttribute('aria-invalid')
    return subject
      ? { subject: subject.id, trial: index }
      : { scan: scan?.id ?? '', volume: index }
  }

  /** What the chosen scan is called. */
  label(): string {
    const { subject, scan } = this.chosen()
    return subject
      ? `${subject.id}, trial ${this.index.value}`
      : `scan ${scan?.id ?? ''}, volume ${this.index.value}`
  }

  /** The regions of the chosen scan. */
  regions(): RegionInfo[] {
    const { subject, scan } = this.chosen()
    return subject?.regions ?? scan?.regions ?? []
  }

  focus(): void {
    this.who.focus()
  }

  private chosen(): { subject: SubjectInfo | undefined; scan: ScanInfo | undefined } {
    const [kind, id] = this.who.value.split(' ')
    return {
      subject: this.catalog.subjects.find((s) => kind === 'subject' && s.id === id),
      scan: this.catalog.scans.find((s) => kind === 'scan' && s.id === id),
    }
  }

  private refresh(): void {
    const { subject, scan } = this.chosen()
    const label = this.indexField.querySelector('label')
    if (label) label.textContent = scan ? 'Volume' : 'Trial'
    this.index.max = String((subject?.n_trials ?? scan?.n_volumes ?? 1) - 1)
    this.test.hidden = !subject
    this.remove.hidden = !scan
    this.facts.textContent = ''
    const source = this.source()
    if (source) void this.describe(source)
    this.onChange()
  }

  private async describe(source: Source): Promise<void> {
    this.asked += 1
    const asked = this.asked
    const { subject, scan } = this.chosen()
    if (scan) {
      const until = new Date(1000 * scan.expires).toLocaleTimeString([], { timeStyle: 'short' })
      const warnings = scan.warnings.length > 0 ? ` ${scan.warnings.join(' ')}` : ''
      this.facts.textContent = `${scan.n_voxels} voxels; kept until ${until}.${warnings}`
    }
    if (!subject || !('subject' in source)) return
    try {
      const { data } = await this.api.trials(subject.id, source.trial, 1)
      const trial = data[0]
      if (asked !== this.asked || !trial) return
      const run = trial.run === null ? '' : `, run ${trial.run}`
      const shown = trial.answers?.[0] ? ` Shown: ${trial.answers[0]}.` : ''
      this.facts.textContent =
        `${subject.n_voxels} voxels; session ${trial.session}${run}, of the ${trial.split} set.` +
        shown
    } catch (error) {
      showError(this.error, error)
    }
  }

  private async chooseTestTrial(): Promise<void> {
    const { subject } = this.chosen()
    if (!subject) return
    try {
      const { total } = await this.api.trials(subject.id, 0, 1, 'test')
      if (total === 0) throw new Error(`${subject.id} has no test trials; choose a number.`)
      const { data } = await this.api.trials(subject.id, Math.floor(Math.random() * total), 1, 'test')
      this.index.value = String(data[0]?.trial ?? 0)
      this.refresh()
    } catch (error) {
      showError(this.error, error)
    }
  }

  private async removeScan(): Promise<void> {
    const { scan } = this.chosen()
    if (!scan) return
    try {
      await this.api.removeScan(scan.id)
      this.onRemoved(scan.id)
      this.who.focus()
    } catch (error) {
      showError(this.error, error)
    }
  }
}

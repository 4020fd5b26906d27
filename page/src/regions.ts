/** Regions that are switched off: a list of checkboxes per atlas. */

import type { RegionInfo, RegionName } from './api'
import { el, newId } from './dom'
import { labelled } from './brain'

const MOST = 100 // that the server takes at once

export class RegionChooser {
  readonly element: HTMLElement
  private regions: RegionInfo[] = []
  private readonly off = new Map<string, RegionName>()
  private readonly atlas = el('select')
  private readonly filter = el('input', { type: 'search', autocomplete: 'off' })
  private readonly list = el('div', { class: 'checklist' })
  private readonly summary = el('summary')
  private readonly error = el('p', { class: 'error', role: 'alert', hidden: true })

  constructor() {
    const clear = el('button', { type: 'button', class: 'quiet' }, 'Switch all on')
    clear.addEventListener('click', () => {
      this.off.clear()
      this.show()
    })
    this.element = el(
      'details',
      {},
      this.summary,
      el(
        'div',
        { class: 'row' },
        labelled('Atlas', this.atlas),
        labelled('Find a region', this.filter),
        clear,
      ),
      this.error,
      this.list,
      el(
        'p',
        { class: 'note' },
        'The betas of their voxels are set to the mean. The question is asked with and without them.',
      ),
    )
    this.atlas.addEventListener('change', () => this.show())
    this.filter.addEventListener('input', () => this.show())
    this.show()
  }

  /** Takes the regions of a scan; those that are off stay so where the scan has them. */
  setRegions(regions: RegionInfo[]): void {
    this.regions = regions
    const keys = new Set(regions.map(key))
    for (const name of this.off.keys()) if (!keys.has(name)) this.off.delete(name)
    const names = [...new Set(regions.map((region) => region.atlas))]
    const before = this.atlas.value
    this.atlas.replaceChildren(...names.map((name) => el('option', { value: name }, name)))
    if (names.includes(before)) this.atlas.value = before
    this.show()
  }

  /** Regions that are off, those alone that a scan has. */
  without(regions: RegionInfo[]): RegionName[] {
    const keys = new Set(regions.map(key))
    return [...this.off].filter(([name]) => keys.has(name)).map(([, region]) => region)
  }

  private show(): void {
    const wanted = this.filter.value.trim().toLowerCase()
    const rows = this.regions.filter(
      (region) =>
        region.atlas === this.atlas.value && region.parcel.toLowerCase().includes(wanted),
    )
    const legend = newId('legend')
    this.list.setAttribute('role', 'group')
    this.list.setAttribute('aria-labelledby', legend)
    this.list.replaceChildren(
      el('span', { id: legend, class: 'note' }, `${rows.length} regions; ticked: off`),
      ...rows.map((region) => this.row(region)),
    )
    this.count()
  }

  private row(region: RegionInfo): HTMLElement {
    const name = key(region)
    const box = el('input', { type: 'checkbox', id: newId('region') })
    box.checked = this.off.has(name)
    box.addEventListener('change', () => {
      if (box.checked && this.off.size >= MOST) box.checked = false
      else if (box.checked) this.off.set(name, { atlas: region.atlas, parcel: region.parcel })
      else this.off.delete(name)
      this.count()
    })
    const label = el('label', { for: box.id }, region.parcel, ' ')
    label.append(el('span', { class: 'note' }, `${region.n_voxels} voxels`))
    return el('div', { class: 'check' }, box, label)
  }

  private count(): void {
    const names = [...this.off.values()].map((region) => region.parcel)
    const shown = names.length > 3 ? `${names.slice(0, 3).join(', ')}, …` : names.join(', ')
    this.summary.textContent =
      names.length === 0 ? 'Switch regions off' : `Regions off: ${names.length} (${shown})`
    this.error.hidden = names.length < MOST
    this.error.textContent = names.length < MOST ? '' : `At most ${MOST} regions can be off.`
  }
}

function key(region: RegionName): string {
  return `${region.atlas}\n${region.parcel}`
}

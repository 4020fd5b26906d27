/** Sends a NIfTI file and its mask. */

import type { Api, ScanInfo } from './api'
import { announce, byId, el, percent, showError } from './dom'

const ATLAS = /(^|_)atlas-[A-Za-z0-9]+_(.*_)?dseg\.(nii|nii\.gz|tsv)$/

export class Upload {
  private readonly form = byId<HTMLFormElement>('upload')
  private readonly details = byId<HTMLDetailsElement>('upload-details')
  private readonly volume = byId<HTMLInputElement>('upload-volume')
  private readonly mask = byId<HTMLInputElement>('upload-mask')
  private readonly atlases = byId<HTMLInputElement>('upload-atlases')
  private readonly standardized = byId<HTMLInputElement>('upload-standardized')
  private readonly drop = byId('upload-drop')
  private readonly progress = byId<HTMLProgressElement>('upload-progress')
  private readonly state = byId('upload-state')
  private readonly error = byId('upload-error')
  private readonly stop = byId<HTMLButtonElement>('upload-stop')
  private readonly submit = byId<HTMLButtonElement>('upload-submit')
  private running: AbortController | null = null

  constructor(
    private readonly api: Api,
    private readonly onScan: (scan: ScanInfo) => void,
  ) {
    this.form.addEventListener('submit', (event) => {
      event.preventDefault()
      void this.send()
    })
    this.stop.addEventListener('click', () => this.running?.abort())
    this.drop.addEventListener('dragover', (event) => {
      event.preventDefault()
      this.drop.classList.add('over')
    })
    // files that are dragged over the page open the form; dropped beside it, they go nowhere
    document.addEventListener('dragenter', (event) => {
      if (event.dataTransfer?.types.includes('Files')) this.details.open = true
    })
    for (const name of ['dragover', 'drop']) {
      document.addEventListener(name, (event) => event.preventDefault())
    }
    this.drop.addEventListener('dragleave', () => this.drop.classList.remove('over'))
    this.drop.addEventListener('drop', (event) => {
      event.preventDefault()
      this.drop.classList.remove('over')
      this.take([...(event.dataTransfer?.files ?? [])])
    })
  }

  /** Gives dropped files to the fields that their names belong to. */
  private take(files: File[]): void {
    const atlases = files.filter((file) => ATLAS.test(file.name))
    const others = files.filter((file) => !atlases.includes(file))
    const masks = others.filter((file) => /mask/i.test(file.name))
    const volumes = others.filter((file) => !masks.includes(file))
    showError(this.error, null)
    if (masks.length > 1 || volumes.length > 1) {
      const what = 'Drop one scan and one mask; the name of the mask holds the word "mask".'
      showError(this.error, what)
      return
    }
    if (volumes.length) fill(this.volume, volumes)
    if (masks.length) fill(this.mask, masks)
    if (atlases.length) fill(this.atlases, atlases)
    this.state.textContent = `${files.length} files taken.`
  }

  private async send(): Promise<void> {
    const [volume, mask] = [this.volume.files?.[0], this.mask.files?.[0]]
    showError(this.error, null)
    this.state.textContent = ''
    if (!volume || !mask) {
      showError(this.error, `Choose ${volume ? 'the mask' : 'the scan'}: a .nii or .nii.gz file.`)
      ;(volume ? this.mask : this.volume).focus()
      return
    }
    const form = new FormData()
    form.append('volume', volume)
    form.append('mask', mask)
    for (const file of this.atlases.files ?? []) form.append('atlases', file)
    form.append('standardized', String(this.standardized.checked))
    this.running = new AbortController()
    this.setBusy(true)
    try {
      const scan = await this.api.upload(form, (done) => this.showProgress(done), this.running.signal)
      const size = `${scan.n_volumes} volumes, ${scan.n_voxels} voxels`
      this.state.textContent = `Scan ${scan.id} is read: ${size}. It is chosen above.`
      const warnings = scan.warnings.map((warning) => el('li', {}, warning))
      if (warnings.length > 0) this.state.append(el('ul', {}, ...warnings))
      this.onScan(scan)
    } catch (error) {
      if (error instanceof DOMException && error.name === 'AbortError') {
        this.state.textContent = 'Stopped; nothing was kept.'
      } else {
        showError(this.error, error)
      }
    } finally {
      this.setBusy(false)
    }
  }

  private showProgress(fraction: number): void {
    this.progress.value = fraction
    const text = fraction < 1 ? `${percent(fraction)} sent.` : 'Sent; the server reads it.'
    if (this.state.textContent !== text) this.state.textContent = text
    if (fraction === 1) announce(text)
  }

  private setBusy(isBusy: boolean): void {
    this.progress.hidden = !isBusy
    this.progress.value = 0
    this.stop.hidden = !isBusy
    this.submit.disabled = isBusy
  }
}

function fill(input: HTMLInputElement, files: File[]): void {
  const transfer = new DataTransfer()
  for (const file of files) transfer.items.add(file)
  input.files = transfer.files
}

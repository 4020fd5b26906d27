/** NiiVue: slices of the MNI152 anatomy with a map over it. Loaded when the first map is shown. */

import { MULTIPLANAR_TYPE, NVImage, Niivue, SHOW_RENDER, SLICE_TYPE } from '@niivue/niivue'

export type Kind = 'attention' | 'signed'
export type View = 'slices' | 'surface'

/** Numbers of a map's voxels that are not zero. */
export interface Range {
  min: number
  max: number
  low: number
  high: number
}

interface Location {
  mm: ArrayLike<number>
  values: { value: number }[]
}

const STEPS: Record<string, [number, number, number]> = {
  ArrowLeft: [-1, 0, 0],
  ArrowRight: [1, 0, 0],
  ArrowUp: [0, 1, 0],
  ArrowDown: [0, -1, 0],
  PageUp: [0, 0, 1],
  PageDown: [0, 0, -1],
}

export class Viewer {
  private readonly niivue: Niivue
  private map: NVImage | null = null
  private kind: Kind = 'attention'
  private range: Range = { min: 0, max: 1, low: 0, high: 1 }

  private constructor(private readonly canvas: HTMLCanvasElement) {
    this.niivue = new Niivue({
      backColor: [0, 0, 0, 1],
      crosshairColor: [1, 1, 1, 0.6],
      crosshairWidth: 1,
      dragAndDropEnabled: false,
      fontColor: [1, 1, 1, 1],
      isColorbar: true,
      isResizeCanvas: true,
      loadingText: '',
      logLevel: 'error',
      multiplanarEqualSize: true,
      multiplanarLayout: MULTIPLANAR_TYPE.GRID,
      multiplanarShowRender: SHOW_RENDER.ALWAYS,
      scrollRequiresFocus: true,
      show3Dcrosshair: true,
    })
  }

  /** A viewer on a canvas; `onLocation` gets the crosshair's position and the map's value. */
  static async create(
    canvas: HTMLCanvasElement,
    template: ArrayBuffer,
    onLocation: (mm: number[], value: number | null) => void,
  ): Promise<Viewer> {
    if (document.createElement('canvas').getContext('webgl2') === null) {
      throw new Error('This browser shows no WebGL 2; the table has the numbers of the regions.')
    }
    const viewer = new Viewer(canvas)
    const { niivue } = viewer
    await niivue.attachToCanvas(canvas, true)
    const anatomy = await NVImage.loadFromUrl({
      url: template.slice(0), name: 'template.nii', colormap: 'gray', colorbarVisible: false,
    })
    niivue.addVolume(anatomy)
    niivue.setSliceType(SLICE_TYPE.MULTIPLANAR)
    niivue.onLocationChange = (data) => {
      const { mm, values } = data as Location
      onLocation(Array.from(mm).slice(0, 3), viewer.map ? (values[1]?.value ?? null) : null)
    }
    canvas.addEventListener('keydown', (event) => viewer.onKey(event), { capture: true })
    return viewer
  }

  /** Shows a map and returns its range. */
  async show(image: ArrayBuffer, kind: Kind, threshold: number): Promise<Range> {
    const { niivue } = this
    const map = await NVImage.loadFromUrl({ url: image, name: 'map.nii', colorbarVisible: true })
    this.kind = kind
    this.range = rangeOf(map.img as ArrayLike<number>, kind)
    map.colormap = kind === 'attention' ? 'plasma' : 'warm'
    map.colormapNegative = kind === 'attention' ? '' : 'winter'
    map.opacity = 0.85
    if (this.map) niivue.removeVolume(this.map)
    this.map = map
    niivue.addVolume(map)
    this.setThreshold(threshold)
    return this.range
  }

  /** Hides voxels below a fraction of the map's upper limit. */
  setThreshold(fraction: number): number {
    const { low, high } = this.range
    const limit = low + fraction * (high - low)
    if (this.map) {
      this.map.cal_min = Math.max(limit, 1e-9)
      this.map.cal_max = Math.max(high, limit + 1e-9)
      if (this.kind === 'signed') {
        this.map.cal_minNeg = -this.map.cal_min
        this.map.cal_maxNeg = -this.map.cal_max
      }
      this.niivue.updateGLVolume()
    }
    return limit
  }

  /** Moves the crosshair to the largest value of the map. */
  goToPeak(): void {
    if (this.map === null) return
    const values = this.map.img as ArrayLike<number>
    let best = 0
    for (let i = 1; i < values.length; i++) {
      if (Math.abs(values[i] ?? 0) > Math.abs(values[best] ?? 0)) best = i
    }
    const [, nx = 1, ny = 1] = this.map.hdr?.dims ?? []
    const [x, y, z] = [best % nx, Math.floor(best / nx) % ny, Math.floor(best / (nx * ny))]
    const [a, b, c] = this.map.hdr?.affine ?? []
    if (!a || !b || !c) return
    const along = (row: number[]): number =>
      (row[0] ?? 0) * x + (row[1] ?? 0) * y + (row[2] ?? 0) * z + (row[3] ?? 0)
    this.niivue.scene.crosshairPos = this.niivue.mm2frac([along(a), along(b), along(c)])
    this.niivue.createOnLocationChange()
    this.niivue.drawScene()
  }

  setView(view: View): void {
    this.niivue.setSliceType(view === 'slices' ? SLICE_TYPE.MULTIPLANAR : SLICE_TYPE.RENDER)
  }

  /** Removes the map: what is shown belongs to another scan. */
  clear(): void {
    if (this.map) this.niivue.removeVolume(this.map)
    this.map = null
  }

  private onKey(event: KeyboardEvent): void {
    const step = STEPS[event.key]
    if (step === undefined || event.ctrlKey || event.altKey || event.metaKey) return
    event.preventDefault()
    event.stopImmediatePropagation()
    const factor = event.shiftKey ? 5 : 1
    if (this.niivue.opts.sliceType === SLICE_TYPE.RENDER) {
      const { scene } = this.niivue
      this.niivue.setRenderAzimuthElevation(
        scene.renderAzimuth + 5 * step[0], scene.renderElevation + 5 * step[1],
      )
    } else {
      this.niivue.moveCrosshairInVox(step[0] * factor, step[1] * factor, step[2] * factor)
    }
    this.canvas.focus()
  }
}

function rangeOf(values: ArrayLike<number>, kind: Kind): Range {
  const present = Array.from(values).filter((value) => value !== 0 && Number.isFinite(value))
  if (present.length === 0) return { min: 0, max: 0, low: 0, high: 1 }
  const sizes = present.map(kind === 'signed' ? Math.abs : (value) => value).sort((a, b) => a - b)
  const high = sizes[Math.floor(0.995 * (sizes.length - 1))] ?? 1
  const low = kind === 'signed' ? 0 : Math.min(1, high)
  let [min, max] = [Infinity, -Infinity]
  for (const value of present) {
    min = Math.min(min, value)
    max = Math.max(max, value)
  }
  return { min, max, low, high }
}

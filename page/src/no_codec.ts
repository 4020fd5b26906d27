/** Stands for a codec of Zarr files, which this page does not read. */

const codec = {
  fromConfig(): never {
    throw new Error('This page reads no Zarr files.')
  },
}

export default codec

import { createHash } from 'node:crypto'
import { readFileSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { defineConfig } from 'vite'

const root = import.meta.dirname

/** Writes a checksum of the sources, by which a test tells that the built files are theirs. */
function sourcesChecksum() {
  return {
    name: 'sources-checksum',
    generateBundle() {
      const files = ['index.html', 'package-lock.json', 'package.json', 'tsconfig.json']
      files.push('vite.config.js', ...readdirSync(join(root, 'src')).map((name) => `src/${name}`))
      const hash = createHash('sha256')
      for (const file of files.sort()) hash.update(`${file}\n`).update(readFileSync(join(root, file)))
      this.emitFile({ type: 'asset', fileName: 'sources.sha256', source: `${hash.digest('hex')}\n` })
    },
  }
}

// Codecs of Zarr, which the server never sends: 1.4 MB that would be shipped for nothing.
const codec = { find: /^numcodecs\/(blosc|lz4|zstd)$/, replacement: join(root, 'src/no_codec.ts') }

export default defineConfig({
  root,
  resolve: { alias: [codec] },
  base: './',
  build: {
    outDir: '../src/mindllm/serve/page',
    emptyOutDir: true,
    target: 'es2022',
    cssTarget: ['chrome123', 'firefox120', 'safari17.5'],
    assetsDir: 'assets',
    chunkSizeWarningLimit: 4000,
    license: { fileName: 'licenses.md' },
  },
  plugins: [sourcesChecksum()],
})

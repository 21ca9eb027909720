// Prisma's command line without its native engines, which would have to be downloaded: the engine in WebAssembly over
// node's own driver. node-postgres takes the server from PGHOST and its kin.
import { PrismaPg } from '@prisma/adapter-pg'
import { defineConfig } from 'prisma/config'

// The adapter cuts a script at each semicolon and commits each piece. The native engine, which the application has,
// sends the file as one simple query; so does this.
class AsTheNativeEngine extends PrismaPg {
  async connect() {
    const connection: any = await super.connect()
    connection.executeScript = async (script: string) => {
      try {
        await connection.client.query(script)
      } catch (error) {
        connection.onError(error)
      }
    }
    return connection
  }
}

// The engine waits 10 s for its lock by a timer that it never clears: don't keep the process alive for it.
const setTimer: any = globalThis.setTimeout
globalThis.setTimeout = ((work: any, milliseconds: number, ...rest: any[]) => {
  const timer = setTimer(work, milliseconds, ...rest)
  return milliseconds >= 10_000 ? timer.unref() : timer
}) as any

export default defineConfig({
  experimental: { adapter: true },
  engine: 'js',
  schema: 'schema.prisma',
  migrations: { path: 'migrations' },
  // One connection, because the lock belongs to a session.
  adapter: async () => new AsTheNativeEngine({ max: 1, allowExitOnIdle: true }),
})

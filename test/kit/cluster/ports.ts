/** Ports for servers that are stopped and started again in the same place. */
import { readFileSync } from "node:fs"
import { createServer } from "node:net"

/** The first port that the system may give to an outgoing connection. */
const ephemeral = Number(readFileSync("/proc/sys/net/ipv4/ip_local_port_range", "utf8").split("\t")[0])
const lowest = 10_000
let next = Math.floor(Math.random() * (ephemeral - lowest))

/**
 * A free port that no outgoing connection takes while its server is stopped, as it may take one that the system has chosen.
 * Not twice the same in a process.
 */
export const stablePort = async (): Promise<number> => {
  const port = lowest + (next++ % (ephemeral - lowest))
  const server = createServer()
  const free = await new Promise<boolean>((resolve) => {
    server.once("error", () => resolve(false)).listen(port, "127.0.0.1", () => resolve(true))
  })
  if (!free) return stablePort()
  await new Promise((resolve) => server.close(resolve))
  return port
}

/**
 * TLS between replicas, with a key that they share instead of certificates (RFC 8446, section 2.2). Each end proves that it has the key
 * before the other end reads a message.
 */
import * as NodeSocket from "@effect/platform-node/NodeSocket"
import * as NodeSocketServer from "@effect/platform-node/NodeSocketServer"
import { Cause, Effect, Layer } from "effect"
import { Socket, SocketServer } from "effect/socket"
import { hkdfSync } from "node:crypto"

/** The key of the connections between replicas. */
export type Key = Buffer

export interface Address {
  readonly host: string
  readonly port: number
}

/** Derives the key from the state key, which all replicas share (HKDF, RFC 5869). */
export const keyOf = (stateKey: string): Key =>
  Buffer.from(hkdfSync("sha256", stateKey, "", "effect-session-pool replicas", 32))

/** Names the key. TLS sends this name in the clear. */
const identity = "replica"

// Node offers a pre-shared key in TLS 1.3 only with a cipher suite of SHA-256.
const shared = { minVersion: "TLSv1.3", ciphers: "TLS_AES_128_GCM_SHA256", noDelay: true } as const

/**
 * Listens for other replicas. A peer that does not prove within `handshakeTimeout` that it has the key is disconnected. A connection that
 * breaks is normal: its replica was killed, or the network failed.
 */
export const layerServer = (address: Address, key: Key) =>
  Layer.effect(
    SocketServer.SocketServer,
    Effect.map(
      NodeSocketServer.makeTls({
        ...address,
        ...shared,
        handshakeTimeout: 5000,
        pskCallback: (_, name) => name === identity ? key : null
      }),
      (server) =>
        SocketServer.SocketServer.of({
          address: server.address,
          run: (handler) =>
            server.run((socket) =>
              Effect.catchCause(handler(socket), (cause) => {
                const error = Cause.squash(cause)
                return Socket.isSocketError(error)
                  ? Effect.logDebug(`The connection of another replica broke: ${error.message}`)
                  : Effect.failCause(cause)
              })
            )
        })
    )
  )

/** A connection to another replica. Without Nagle's algorithm (`noDelay`), because with it a call took 88 ms. */
export const connect = (address: Address, key: Key) =>
  NodeSocket.makeTls({
    ...address,
    ...shared,
    openTimeout: 1000,
    // The protocol pings every five seconds.
    timeout: 5500,
    pskCallback: () => ({ psk: key, identity }),
    // There is no certificate to check. The key has proved who the server is.
    checkServerIdentity: () => undefined
  })

/** The name that a back end gets from its command. */
import { assert, describe, it } from "vitest"
import * as CommandName from "../../src/gateway/app/CommandName.ts"
import * as Backends from "../../src/gateway/transports/Backends.ts"

describe("the name of a command", () => {
  it.each([
    ["some-server --stdio", "some-server"],
    ["C:\\tools\\some-server.exe --stdio", "some-server"],
    ["npx -y @scope/some-server@1.2 /srv/files", "some-server"],
    ["npx.cmd --yes -- some-server --port 1", "some-server"],
    ["npm exec @scope/some-server", "some-server"],
    ["uvx some-server[cli]>=1.2", "some-server"],
    ["uv run python -u some-server.py", "some-server"],
    ["docker run -i --rm -e KEY example/some-server:1.2 --stdio", "some-server"],
    ["env FOO=1 node /srv/some-server/dist/index.js stdio", "some-server"],
    ["deno run -A npm:@scope/some-server@1", "some-server"],
    ["node dist/index.js", "server"],
    ["npx -y", "server"],
    ["", "server"]
  ])("the command %s gets the name %s", (command, name) => {
    assert.strictEqual(CommandName.fromCommand(command.split(" ")), name)
  })

  it("an odd command gets a valid name", () => {
    for (const odd of ["...", "@a", "x".repeat(300), "npx ../..", "npx \u0000", "ÄÖ", "node 'a b'", "[]"]) {
      assert.isTrue(Backends.isName(CommandName.fromCommand(odd.split(" "))), odd)
    }
    assert.isTrue(Backends.isName(CommandName.fromCommand([])))
  })
})

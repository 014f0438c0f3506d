/** What a back end is called of which a person has only typed the command. */
import { assert, describe, it } from "vitest"
import * as CommandName from "../../src/gateway/app/CommandName.ts"
import * as Backends from "../../src/gateway/transports/Backends.ts"

/** Commands, as typed, and the name of the server that each runs. */
const names: Readonly<Record<string, ReadonlyArray<string>>> = {
  "some-server": [
    "some-server --stdio",
    "/usr/local/bin/some-server",
    "C:\\tools\\some-server.exe --stdio",
    "npx some-server",
    "npx -y some-server@latest /srv/files",
    "npx.cmd --yes -- some-server --port 1",
    "npx -p @scope/package some-server",
    "npx --package=@scope/package some-server",
    "npx --registry https://npm.example.com some-server",
    "npx github:owner/some-server#main",
    "npm exec some-server",
    "npm exec --yes --package @scope/package -- some-server --port 1",
    "npm --prefix /srv x some-server",
    "pnpm dlx some-server",
    "pnpx some-server@1",
    "yarn dlx -q some-server",
    "bunx --bun some-server",
    "bun x some-server",
    "bun run /srv/some-server.ts",
    "uvx some-server",
    "uvx some-server@1.2 --root /srv",
    "uvx --from git+https://example.com/owner/package.git --python 3.12 some-server",
    "uvx some-server[cli]>=1.2",
    "uvx git+https://example.com/owner/some-server.git@v1",
    "uv tool run some-server",
    "uv --directory /srv/servers run some-server.py",
    "uv run --with mcp python -u some-server.py",
    "pipx run some-server==1.2",
    "pipx run --spec package some-server",
    "docker run -i --rm -e KEY -v /srv:/srv example/some-server:1.2 --stdio",
    "podman run -i registry.example.com:5000/owner/some-server",
    "node /srv/some-server.js",
    "node --max-old-space-size=100 --import tsx ./some-server.mts",
    "node /srv/some-server/dist/index.js stdio",
    "npx tsx src/some-server.ts",
    "deno run -A npm:@scope/some-server@1",
    "env some-server",
    "env FOO=1 BAR=/a/b npx -y some-server",
    "/usr/bin/env -u HOME -i FOO= some-server A=1",
    "npx -y -p cross-env env A=1 node some-server.js",
    "python /srv/some-server.py",
    "python3.12 -u -m some-server"
  ],
  "env": ["env", "env A=1"],
  "server-name": [
    "env FOO=1 npx -y @scope/server-name",
    "npx -y @scope/server-name@1.2",
    "npm exec @scope/server-name",
    "pnpm dlx @scope/server-name@next"
  ],
  "package.server": ["python3 -m package.server"],
  // It runs nothing that has a name.
  "npm": ["npm start", "npm"],
  "node": ["node", "node -e 0", "node ."],
  "npx": ["npx -y", "npx -c some-server"],
  "python3": ["python3 -c pass"],
  "docker": ["docker compose up"],
  "index": ["node dist/index.js"],
  "server": ["", "/", "@/@ --stdio"],
  "a-b": ["./a*b"],
  "constructor": ["constructor"]
}

describe("a back end of which only the command is known", () => {
  it("is named after the server, whatever runs that", () => {
    const commands = Object.entries(names).flatMap(([name, commands]) => commands.map((each) => [each, name]))
    assert.deepStrictEqual(commands.map(([each = ""]) => [each, CommandName.fromCommand(each.split(" "))]), commands)
  })

  it("has a name that back ends may have, whatever was typed", () => {
    const odd = ["", "-", "...", "@", "@a", "x".repeat(300), "npx ../..", "npx \u0000", "ÄÖ", "node 'a b'", "[]", "a/"]
    const all = [...odd, ...Object.values(names).flat()].map((each) => CommandName.fromCommand(each.split(" ")))
    assert.deepStrictEqual(all.filter((name) => !Backends.isName(name)), [])
    assert.isTrue(Backends.isName(CommandName.fromCommand([])))
  })
})

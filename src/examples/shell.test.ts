import { NodeServices } from "@effect/platform-node"
import { assert, it } from "@effect/vitest"
import { Effect, Layer, Stdio, Stream } from "effect"
import { Command } from "effect/cli"
import { TestClock, TestConsole } from "effect/testing"
import { shells } from "./shell.ts"

/** Runs the program with this input, and returns its output. */
const run = Effect.fnUntraced(function*(...input: ReadonlyArray<Stream.Stream<string>>) {
  const stdio = Stdio.layerTest({ stdin: Stream.encodeText(Stream.flatten(Stream.fromIterable(input))) })
  yield* Command.runWith(shells, { version: "1.0.0" })(["--idle", "10 minutes"]).pipe(
    Effect.provide(Layer.merge(NodeServices.layer, stdio))
  )
  return yield* TestConsole.logLines
})

const lines = (...lines: ReadonlyArray<string>) => Stream.make(...lines.map((line) => `${line}\n`))

/** Lets time pass when the program has carried out the lines before. */
const pass = (time: "12 minutes") => Stream.fromEffectDrain(TestClock.adjust(time))

it.effect("commands of one session share a shell, and another session has another shell", () =>
  Effect.gen(function*() {
    const output = yield* run(lines("ada cd /; NAME=ada", "bob NAME=bob", "ada echo $NAME in $PWD", "bob echo $NAME"))
    assert.deepStrictEqual(output.slice(0, 4), [
      "ada: exit code 0",
      "bob: exit code 0",
      "ada: ada in /\nexit code 0",
      "bob: bob\nexit code 0"
    ])
    assert.deepStrictEqual(output.slice(4).toSorted(), ["ada: closed", "bob: closed"])
  }))

it.effect("closes a shell after ten idle minutes, and opens a new one for the next command", () =>
  Effect.gen(function*() {
    const output = yield* run(lines("ada NAME=ada"), pass("12 minutes"), lines("ada echo name: $NAME"))
    // The first shell ends in real time, beside the next command.
    assert.deepStrictEqual(output.toSorted(), [
      "ada: closed",
      "ada: closed",
      "ada: exit code 0",
      "ada: name:\nexit code 0"
    ])
  }))

it.effect("a command that reads its input or has an open quote does not swallow the next command", () =>
  Effect.gen(function*() {
    const output = yield* run(lines("", "ada cat", "ada echo it's", "ada echo back"))
    assert.deepStrictEqual(output.slice(0, 1), ["ada: exit code 0"])
    assert.include(output, "ada: the shell ended")
    assert.include(output, "ada: back\nexit code 0")
  }))

it.effect("opens a new shell after one that ended", () =>
  Effect.gen(function*() {
    const output = yield* run(lines("ada exit 3", "ada echo back"))
    assert.include(output, "ada: the shell ended")
    assert.include(output, "ada: back\nexit code 0")
  }))

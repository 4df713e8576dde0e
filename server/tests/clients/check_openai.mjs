// Checks a running server with the official `openai` package. See README.md.

import assert from "node:assert/strict";
import OpenAI from "openai";

const url = process.env.LEAPFROG_URL ?? "http://127.0.0.1:8080";
const key = process.env.LEAPFROG_KEY;
const smallQueue = process.env.LEAPFROG_SMALL_QUEUE === "1";

const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key ?? "unused", maxRetries: 0, timeout: 120_000 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: "user", content: "Count from one to five." }];

const chat = (more = {}) =>
  client.chat.completions.create({ model, messages, temperature: 0, max_tokens: 12, ...more });
const complete = (prompt, more = {}) =>
  client.completions.create({ model, prompt, temperature: 0, max_tokens: 6, ...more });
const all = async (stream) => {
  const chunks = [];
  for await (const chunk of await stream) chunks.push(chunk);
  return chunks;
};
const tokensOf = async (text) => {
  const headers = { "content-type": "application/json", authorization: `Bearer ${key ?? "unused"}` };
  const reply = await fetch(`${url}/tokenize`, { method: "POST", headers, body: JSON.stringify({ content: text }) });
  return (await reply.json()).tokens;
};
const raises = async (kind, call) => {
  try {
    await call();
  } catch (error) {
    assert.ok(error instanceof kind, `${error?.constructor?.name}: ${error}`);
    return error;
  }
  assert.fail(`no ${kind.name}`);
};

const isDiffusion = (await chat()).leapfrog.strategy === "diffusion";

const checks = {
  async "models are listed and retrieved"() {
    for await (const entry of await client.models.list()) {
      assert.equal((await client.models.retrieve(entry.id)).id, entry.id);
    }
  },

  async "a chat reply is complete"() {
    const reply = await chat();
    assert.match(reply.id, /^chatcmpl-/);
    const [choice] = reply.choices;
    assert.equal(choice.message.role, "assistant");
    assert.equal(choice.message.refusal, null);
    assert.equal(typeof choice.message.content, "string");
    assert.equal(reply.usage.total_tokens, reply.usage.prompt_tokens + reply.usage.completion_tokens);
    assert.ok(reply.leapfrog.forward_passes > 0);
  },

  async "a stream is the same text"() {
    const whole = await chat();
    const chunks = await all(chat({ stream: true, stream_options: { include_usage: true } }));
    const usage = chunks.pop();
    assert.deepEqual(usage.choices, []);
    // How much of the prompt was cached depends on earlier requests.
    const counted = ({ prompt_tokens_details: _, ...counts }) => counts;
    assert.deepEqual(counted(usage.usage), counted(whole.usage));
    assert.equal(chunks.filter((chunk) => chunk.choices[0].delta.role).length, 1);
    const ends = chunks.filter((chunk) => chunk.choices[0].finish_reason);
    assert.equal(ends.length, 1);
    assert.deepEqual(ends[0].choices[0].delta, {});
    const text = chunks.map((chunk) => chunk.choices[0].delta.content ?? "").join("");
    assert.equal(text, whole.choices[0].message.content);
  },

  async "the stream helper understands it"() {
    const stream = client.chat.completions.stream({ model, messages, temperature: 0, max_tokens: 12 });
    assert.equal(await stream.finalContent(), (await chat()).choices[0].message.content);
  },

  async "log-probabilities cover every token"() {
    const reply = await chat({ logprobs: true, top_logprobs: 2 });
    const { content } = reply.choices[0].logprobs;
    assert.equal(content.length, reply.usage.completion_tokens);
    const bytes = Buffer.from(content.flatMap((token) => token.bytes));
    assert.equal(bytes.toString("utf8"), reply.choices[0].message.content);
    assert.ok(content.every((token) => token.top_logprobs.length === 2));
  },

  async "n, seed and stop are honoured"() {
    if (smallQueue) return "skipped: the queue is small";
    assert.deepEqual((await chat({ n: 2 })).choices.map((choice) => choice.index), [0, 1]);
    const seeded = async () => (await chat({ temperature: 1.5, seed: 7 })).choices[0].message.content;
    assert.equal(await seeded(), await seeded());
    const free = (await complete("The quick brown fox", { ignore_eos: true })).choices[0].text;
    const stop = free.slice(2, 4);
    const cut = (await complete("The quick brown fox", { ignore_eos: true, stop: [stop] })).choices[0];
    assert.equal(cut.text, free.slice(0, free.indexOf(stop)));
    assert.equal(cut.finish_reason, "stop");
  },

  async "completions take four forms of prompt"() {
    if (smallQueue) return "skipped: the queue is small";
    const ids = await tokensOf("The sky is");
    assert.equal((await complete("The sky is")).choices.length, 1);
    assert.equal((await complete(["The sky is", "Once"])).choices.length, 2);
    const single = (await complete(ids)).choices[0].text;
    assert.equal((await complete([ids])).choices[0].text, single);
    const chunks = await all(complete(ids, { stream: true }));
    assert.equal(chunks.map((chunk) => chunk.choices[0].text).join(""), single);
  },

  async "an echo scores its prompt"() {
    if (isDiffusion) return "skipped: a diffusion model has no chain of probabilities";
    const ids = await tokensOf("The sky is blue");
    const { logprobs } = (await complete([ids], { echo: true, logprobs: 3, max_tokens: 0 })).choices[0];
    assert.equal(logprobs.tokens.length, ids.length);
    assert.equal(logprobs.token_logprobs[0], null);
    assert.ok(logprobs.token_logprobs.slice(1).every((value) => value <= 0));
  },

  async "errors have types"() {
    const bad = await raises(OpenAI.BadRequestError, () => chat({ temperature: 1000 }));
    assert.deepEqual([bad.param, bad.code, bad.type], ["temperature", "invalid_value", "invalid_request_error"]);
    const missing = await raises(OpenAI.NotFoundError, () => chat({ model: "no/such" }));
    assert.deepEqual([missing.param, missing.code], ["model", "model_not_found"]);
    const tools = [{ type: "function", function: { name: "f", parameters: {} } }];
    const tool = await raises(OpenAI.BadRequestError, () => chat({ tools }));
    assert.equal(tool.param, "tools");
  },

  async "a wrong key is an authentication error"() {
    if (!key) return "skipped: LEAPFROG_KEY is not set";
    const error = await raises(OpenAI.AuthenticationError, () => client.withOptions({ apiKey: "wrong" }).models.list());
    assert.equal(error.code, "invalid_api_key");
  },

  async "a full queue is a rate limit error"() {
    if (!smallQueue) return "skipped: LEAPFROG_SMALL_QUEUE is not 1";
    const stream = await complete("Once", { max_tokens: 400, stream: true, ignore_eos: true });
    const error = await raises(OpenAI.RateLimitError, () => chat());
    assert.equal(error.code, "rate_limit_exceeded");
    stream.controller.abort();
  },
};

let failed = 0;
let skipped = 0;
for (const [name, run] of Object.entries(checks)) {
  try {
    const outcome = (await run()) ?? "ok";
    if (outcome !== "ok") skipped += 1;
    console.log(`${name}: ${outcome}`);
  } catch (error) {
    failed += 1;
    console.log(`${name}: FAILED\n${error.stack}`);
  }
}
const passed = Object.keys(checks).length - failed - skipped;
console.log(`${passed} passed, ${failed} failed, ${skipped} skipped`);
process.exit(failed ? 1 : 0);

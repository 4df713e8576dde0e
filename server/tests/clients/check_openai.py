"""Checks a running server with the official `openai` package. See README.md."""

import os
import sys
import threading
import time
import traceback

import openai

URL = os.environ.get("LEAPFROG_URL", "http://127.0.0.1:8080")
KEY = os.environ.get("LEAPFROG_KEY")
SMALL_QUEUE = os.environ.get("LEAPFROG_SMALL_QUEUE") == "1"

client = openai.OpenAI(base_url=f"{URL}/v1", api_key=KEY or "unused", max_retries=0, timeout=120)
MODEL = client.models.list().data[0].id
MESSAGES = [{"role": "user", "content": "Count from one to five."}]
CHECKS = []
NO_DIFFUSION = "skipped: the model is not a diffusion model"
DIFFUSION = "skipped: a diffusion model has no chain of probabilities, and one strategy"


def check(function):
    CHECKS.append(function)
    return function


def chat(**more):
    arguments = {"model": MODEL, "messages": MESSAGES, "temperature": 0, "max_tokens": 12}
    return client.chat.completions.create(**{**arguments, **more})


def complete(prompt, **more):
    arguments = {"model": MODEL, "prompt": prompt, "temperature": 0, "max_tokens": 6}
    return client.completions.create(**{**arguments, **more})


def tokens_of(text):
    return post("/tokenize", {"content": text})["tokens"]


def is_diffusion():
    reply = client.chat.completions.create(model=MODEL, messages=MESSAGES, temperature=0, max_tokens=1)
    return reply.leapfrog["strategy"] == "diffusion"


def post(path, body):
    return client.with_options(base_url=URL).post(path, body=body, cast_to=object)


def counts(usage):
    """Without what depends on earlier requests: the tokens that were cached."""
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens


def raises(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"no {kind.__name__}")


@check
def models_are_listed_and_retrieved():
    for model in client.models.list():
        assert model.object == "model"
        assert client.models.retrieve(model.id).id == model.id


@check
def a_chat_reply_is_complete():
    reply = chat()
    assert reply.id.startswith("chatcmpl-") and reply.object == "chat.completion" and reply.model == MODEL
    assert abs(reply.created - time.time()) < 300
    choice = reply.choices[0]
    assert choice.message.role == "assistant" and isinstance(choice.message.content, str)
    assert choice.message.refusal is None and choice.logprobs is None
    assert choice.finish_reason in ("stop", "length")
    usage = reply.usage
    assert 0 < usage.completion_tokens <= 12
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 <= usage.prompt_tokens_details.cached_tokens <= usage.prompt_tokens
    assert reply.leapfrog["forward_passes"] > 0 and "acceptance_histogram" in reply.leapfrog


@check
def a_stream_is_the_same_text():
    whole = chat()
    chunks = list(chat(stream=True))
    assert len({chunk.id for chunk in chunks}) == 1
    assert [c.choices[0].delta.role for c in chunks].count("assistant") == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    ends = [c for c in chunks if c.choices[0].finish_reason]
    assert len(ends) == 1 and ends[0] is chunks[-1] and ends[0].choices[0].delta.content is None
    assert ends[0].choices[0].finish_reason == whole.choices[0].finish_reason
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.choices[0].message.content
    assert all(chunk.usage is None for chunk in chunks)


@check
def the_stream_helper_understands_it():
    with client.chat.completions.stream(model=MODEL, messages=MESSAGES, temperature=0, max_tokens=12) as stream:
        for _event in stream:
            pass
        # `get_final_completion` raises if the text was cut by max_tokens, so the snapshot is read.
        final = stream.current_completion_snapshot
    assert final.choices[0].message.content == chat().choices[0].message.content


@check
def usage_comes_last_if_asked_for():
    chunks = list(chat(stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None and chunk.choices for chunk in chunks[:-1])
    assert counts(chunks[-1].usage) == counts(chat().usage)


@check
def log_probabilities_cover_every_token():
    reply = chat(logprobs=True, top_logprobs=3)
    content = reply.choices[0].logprobs.content
    assert len(content) == reply.usage.completion_tokens
    assert b"".join(bytes(token.bytes) for token in content).decode() == reply.choices[0].message.content
    # A diffusion model may think most of the mask, which is never chosen.
    greedy_is_likeliest = not is_diffusion()
    for token in content:
        assert token.logprob <= 0 and len(token.top_logprobs) == 3
        assert token.top_logprobs[0].token == token.token or not greedy_is_likeliest
    streamed = []
    for chunk in chat(logprobs=True, top_logprobs=3, stream=True):
        if chunk.choices[0].logprobs:
            streamed += chunk.choices[0].logprobs.content
    assert [token.token for token in streamed] == [token.token for token in content]


@check
def n_gives_choices():
    if SMALL_QUEUE:
        return "skipped: the queue is small"
    reply = chat(n=3, temperature=1, seed=1)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    ends = [c.choices[0].index for c in chat(n=3, stream=True) if c.choices[0].finish_reason]
    assert sorted(ends) == [0, 1, 2]


@check
def a_seed_repeats_a_text():
    # So hot that even a model that is sure of itself varies.
    texts = [chat(temperature=50, seed=seed, max_tokens=24).choices[0].message.content for seed in (7, 7, 8, 9, 10)]
    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


@check
def stop_strings_are_cut():
    text = complete("The quick brown fox", max_tokens=16, extra_body={"ignore_eos": True}).choices[0].text
    stop = text[len(text) // 2 : len(text) // 2 + 2]
    reply = complete("The quick brown fox", max_tokens=16, stop=stop, extra_body={"ignore_eos": True})
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].text == text[: text.index(stop)]


@check
def completions_take_four_forms_of_prompt():
    if SMALL_QUEUE:
        return "skipped: the queue is small"
    ids = tokens_of("The sky is")
    assert len(complete("The sky is").choices) == 1
    assert len(complete(["The sky is", "Once"]).choices) == 2
    single = complete(ids).choices[0].text
    both = complete([ids, tokens_of("Once")])
    assert [choice.index for choice in both.choices] == [0, 1]
    assert both.choices[0].text == single
    assert both.usage.prompt_tokens == len(ids) + len(tokens_of("Once"))


@check
def an_echo_scores_its_prompt():
    if is_diffusion():
        return DIFFUSION
    ids = tokens_of("The sky is blue and the grass is green")
    choice = complete([ids], echo=True, logprobs=5, max_tokens=1).choices[0]
    logprobs = choice.logprobs
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs) == len(ids) + 1
    assert logprobs.token_logprobs[0] is None and all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    for token, top in list(zip(logprobs.tokens, logprobs.top_logprobs))[1:]:
        assert token in top
    scores = complete([ids], echo=True, logprobs=5, max_tokens=0).choices[0].logprobs.token_logprobs
    assert all(abs(a - b) < 1e-3 for a, b in zip(scores[1:], logprobs.token_logprobs[1:]))
    text = "The sky is"
    assert complete(text, echo=True).choices[0].text == text + complete(text).choices[0].text


@check
def completions_stream():
    whole = complete("The sky is").choices[0]
    chunks = list(complete("The sky is", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.text
    assert chunks[-1].choices[0].finish_reason == whole.finish_reason


@check
def strategies_agree():
    if is_diffusion():
        return DIFFUSION
    texts = {}
    for strategy in ("ar", "jacobi"):
        reply = chat(extra_body={"decoding": {"strategy": strategy}}, max_tokens=24)
        assert reply.leapfrog["strategy"] == strategy
        texts[strategy] = reply.choices[0].message.content
    assert texts["ar"] == texts["jacobi"], texts


@check
def diffusion_takes_every_option():
    if not is_diffusion():
        return NO_DIFFUSION
    fields = {"temperature": 0.7, "top_p": 0.9, "seed": 5, "presence_penalty": 0.1, "frequency_penalty": 0.1}
    body = {"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1, "decoding": {"policy": "quota", "cache": "none"}}
    same = [chat(max_tokens=16, extra_body=body, **fields).choices[0].message.content for _ in range(2)]
    assert same[0] == same[1], "a seed repeats a text"
    for decoding in (
        "quality",
        "balanced",
        "fast",
        {"policy": "threshold", "threshold": 0.8},
        {"policy": "factor", "factor": 1.0},
        {"policy": "local_leap", "threshold": 0.9, "relaxed_threshold": 0.7, "radius": 2},
        {"policy": "quota", "remasking": "entropy", "early_stop": "none", "suppress_eos": "confidence"},
    ):
        reply = chat(max_tokens=16, extra_body={"decoding": decoding})
        report = reply.leapfrog
        assert report["denoising_steps"] > 0 and report["blocks"] > 0 and isinstance(report["cache_exact"], bool)
        assert set(report["commits"]) == {"top", "anchor", "relaxed"} and sum(report["commits"].values()) > 0
        if isinstance(decoding, dict):
            assert report["policy"] == decoding["policy"]
    error = raises(openai.BadRequestError, lambda: chat(extra_body={"decoding": {"threshold": 2}}))
    assert error.param == "decoding.threshold"
    error = raises(openai.BadRequestError, lambda: complete("a", echo=True, logprobs=1))
    assert error.param == "echo" and error.code == "unsupported_parameter"


@check
def frames_change_nothing_but_themselves():
    if not is_diffusion():
        error = raises(
            openai.BadRequestError,
            lambda: chat(stream=True, extra_body={"stream_options": {"include_frames": True}}),
        )
        assert error.param == "stream_options.include_frames" and error.code == "unsupported_parameter"
        return NO_DIFFUSION
    whole = chat(max_tokens=24).choices[0].message.content
    for interval in (0, 50, 10_000):
        options = {"include_usage": True, "include_frames": True, "frame_interval_ms": interval}
        chunks = list(chat(max_tokens=24, stream=True, extra_body={"stream_options": options}))
        frames = [c for c in chunks if "frame" in ((c.model_extra or {}).get("leapfrog") or {})]
        assert frames and len({chunk.id for chunk in chunks}) == 1
        for frame in frames:
            assert frame.choices[0].delta.content is None and frame.choices[0].finish_reason is None
        steps = [frame.leapfrog["frame"]["step"] for frame in frames]
        assert steps == sorted(set(steps))
        text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
        assert text == whole, (interval, text, whole)
    with client.chat.completions.stream(
        model=MODEL, messages=MESSAGES, temperature=0, max_tokens=24, extra_body={"stream_options": {"include_frames": True}}
    ) as stream:
        for _event in stream:
            pass
        assert stream.current_completion_snapshot.choices[0].message.content == whole


@check
def a_suffix_is_filled_towards():
    prefix, suffix = "The capital of France is", " and it lies on the Seine."
    try:
        reply = complete(prefix, suffix=suffix)
    except openai.BadRequestError as error:
        assert error.param == "suffix" and error.code == "unsupported_parameter"
        return f"skipped: {error.body['message']}"
    text = reply.choices[0].text
    assert complete(prefix, suffix=suffix, echo=True).choices[0].text == prefix + text + suffix
    chunks = list(complete(prefix, suffix=suffix, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == text
    body = {"input_prefix": prefix, "input_suffix": suffix, "n_predict": 6, "temperature": 0}
    reply = post("/infill", body)
    assert reply["content"] == text and reply["stop"] is True and reply["tokens_predicted"] <= 6
    holes = [{"text": prefix}, {"hole": 4}, {"text": ". It lies on the"}, {"mask": 3}, {"text": "."}]
    reply = post("/infill", {"input": holes, "temperature": 0})
    first, second = reply["holes"]
    assert reply["content"] == f"{prefix}{first}. It lies on the{second}."


@check
def a_client_that_leaves_frees_the_server():
    def running():
        lines = client.with_options(base_url=URL).get("/metrics", cast_to=str).splitlines()
        name = "leapfrog_requests_running{"
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    options = {"include_frames": True} if is_diffusion() else {}
    body = {"ignore_eos": True, "stream_options": options}
    stream = chat(max_tokens=400, stream=True, extra_body=body)
    next(iter(stream))
    stream.close()
    end = time.time() + 5
    while running() > 0:
        assert time.time() < end, "the request still runs"
        time.sleep(0.05)


@check
def bad_requests_name_the_field():
    error = raises(openai.BadRequestError, lambda: chat(temperature=1000))
    assert error.param == "temperature" and error.code == "invalid_value" and error.type == "invalid_request_error"
    error = raises(openai.BadRequestError, lambda: chat(messages=[{"role": "user", "content": 5}]))
    assert error.param == "messages[0].content"
    error = raises(openai.BadRequestError, lambda: chat(response_format={"type": "json_object"}))
    assert error.param == "response_format" and error.code == "unsupported_parameter"
    error = raises(openai.BadRequestError, lambda: complete([1] * 1_000_00))
    assert error.code == "context_length_exceeded" and error.param == "prompt"


@check
def unknown_models_are_not_found():
    error = raises(openai.NotFoundError, lambda: chat(model="no/such"))
    assert error.param == "model" and error.code == "model_not_found"
    raises(openai.NotFoundError, lambda: client.models.retrieve("no/such"))


@check
def a_wrong_key_is_an_authentication_error():
    if KEY is None:
        return "skipped: LEAPFROG_KEY is not set"
    error = raises(openai.AuthenticationError, lambda: client.with_options(api_key="wrong").models.list())
    assert error.code == "invalid_api_key"


@check
def a_full_queue_is_a_rate_limit_error():
    if not SMALL_QUEUE:
        return "skipped: LEAPFROG_SMALL_QUEUE is not 1"
    stream = complete("Once", max_tokens=400, stream=True, extra_body={"ignore_eos": True})
    try:
        error = raises(openai.RateLimitError, chat)
        assert error.code == "rate_limit_exceeded" and int(error.response.headers["retry-after"]) >= 1
    finally:
        stream.close()
    # Closing the stream cancels it, so that a client with retries gets through.
    assert client.with_options(max_retries=5).chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=1)


@check
def requests_run_side_by_side():
    if SMALL_QUEUE:
        return "skipped: the queue is small"
    expected = chat().choices[0].message.content
    texts = []
    threads = [threading.Thread(target=lambda: texts.append(chat().choices[0].message.content)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [expected] * 4


def main():
    failed = skipped = 0
    for function in CHECKS:
        name = function.__name__.replace("_", " ")
        try:
            outcome = function() or "ok"
            skipped += outcome != "ok"
        except Exception:
            failed += 1
            outcome = "FAILED\n" + traceback.format_exc()
        print(f"{name}: {outcome}")
    passed = len(CHECKS) - failed - skipped
    print(f"openai {openai.__version__}: {passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())

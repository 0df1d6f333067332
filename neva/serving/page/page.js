// The page of `neva serve --page`: it asks /v1/chat/completions, as any other client does, and loads nothing from elsewhere.
"use strict";

const at = (id) => document.getElementById(id);
const messages = []; // the conversation so far, as the server takes it
let images = []; // data URIs of the next question
let running = null; // AbortController of the answer that grows

function headers() {
  const key = at("key").value;
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

function asDataUri(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

async function choose(blobs) {
  for (const blob of blobs) {
    if (blob.type.startsWith("image/")) images.push(await asDataUri(blob));
  }
  showChosen();
}

function showChosen() {
  at("chosen").replaceChildren(...images.map((uri, number) => {
    const button = thumbnail(uri, `Remove image ${number + 1}`);
    button.onclick = () => { images.splice(number, 1); showChosen(); };
    return button;
  }));
}

function thumbnail(source, title) {
  const button = document.createElement("button");
  const image = document.createElement("img");
  button.type = "button";
  button.title = title;
  image.src = source;
  image.alt = title;
  button.append(image);
  return button;
}

function addTurn(kind, text, uris = []) {
  const turn = document.createElement("li");
  turn.className = kind;
  for (const uri of uris) {
    const image = document.createElement("img");
    image.src = uri;
    image.alt = "asked about";
    turn.append(image);
  }
  const paragraph = document.createElement("p");
  paragraph.textContent = text;
  turn.append(paragraph);
  at("turns").append(turn);
  turn.scrollIntoView({ block: "end" });
  return { turn, paragraph };
}

function body(question) {
  const system = at("system").value.trim();
  const asked = {
    messages: [...(system ? [{ role: "system", content: system }] : []), ...messages, question],
    stream: true,
    temperature: Number(at("temperature").value),
    top_p: Number(at("top-p").value),
    max_tokens: Math.max(1, Math.floor(Number(at("max-tokens").value) || 1)),
  };
  if (at("seed").value !== "") asked.seed = Math.floor(Number(at("seed").value));
  return JSON.stringify(asked);
}

// Yields the events of a stream as objects.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (pending + value).split("\n\n");
    pending = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ") && part !== "data: [DONE]") yield JSON.parse(part.slice(6));
    }
  }
}

async function ask(text) {
  const parts = [...images.map((url) => ({ type: "image_url", image_url: { url } })), { type: "text", text }];
  const question = { role: "user", content: parts };
  const asked = body(question);
  const shown = addTurn("user", text, images);
  images = [];
  showChosen();
  running = new AbortController();
  at("send").textContent = "Stop";
  const { turn, paragraph } = addTurn("assistant", "");
  let isAnswered = false;
  try {
    const response = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body: asked, signal: running.signal });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response)) {
      if (event.error) throw new Error(event.error.message);
      const choice = event.choices[0];
      paragraph.textContent += choice.delta.content ?? "";
      isAnswered ||= Boolean(choice.finish_reason);
      if (choice.finish_reason === "length") note(turn, "cut at the longest answer");
      turn.scrollIntoView({ block: "end" });
    }
  } catch (error) {
    if (error.name === "AbortError") note(turn, "stopped");
    else { turn.className = "problem"; note(turn, error.message); }
    isAnswered ||= error.name === "AbortError" && paragraph.textContent !== "";
  }
  if (isAnswered) messages.push(question, { role: "assistant", content: paragraph.textContent });
  else if (at("text").value === "") { // what was not answered can be asked again
    at("text").value = text;
    images = [...shown.turn.querySelectorAll("img")].map((image) => image.src);
    showChosen();
  }
  turn.dataset.done = "true";
  running = null;
  at("send").textContent = "Ask";
}

function note(turn, text) {
  const small = document.createElement("small");
  small.textContent = text;
  turn.append(small);
}

async function begin() {
  for (const name of ["temperature", "top-p"]) {
    const show = () => { at(`${name}-shown`).textContent = at(name).value; };
    at(name).addEventListener("input", show);
    show();
  }
  const facts = await (await fetch("page/facts")).json();
  document.title = at("name").textContent = facts.model;
  at("key-row").hidden = !facts.has_key;
  at("max-tokens").max = facts.max_tokens;
  at("max-tokens").value = Math.min(256, facts.max_tokens);
  at("examples-row").hidden = facts.examples.length === 0;
  at("examples").append(...facts.examples.map((name, number) => {
    const url = `page/examples/${number}`;
    const button = thumbnail(url, name);
    button.onclick = async () => choose([await (await fetch(url)).blob()]);
    return button;
  }));
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("text").value.trim();
  if (running) running.abort();
  else if (text) { at("text").value = ""; ask(text); }
});
at("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !running) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
at("text").addEventListener("paste", (event) => choose(event.clipboardData.files));
at("file").addEventListener("change", async () => { await choose(at("file").files); at("file").value = ""; });
at("ask").addEventListener("dragover", (event) => { event.preventDefault(); at("ask").classList.add("over"); });
at("ask").addEventListener("dragleave", () => at("ask").classList.remove("over"));
at("ask").addEventListener("drop", (event) => {
  event.preventDefault();
  at("ask").classList.remove("over");
  choose(event.dataTransfer.files);
});
at("clear").addEventListener("click", () => {
  if (running) running.abort();
  messages.length = 0;
  images = [];
  showChosen();
  at("turns").replaceChildren();
});
begin();

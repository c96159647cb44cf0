// The page: takes pictures, asks the server about each, shows what it says. No library, no markup from text.
"use strict";

const AT_ONCE = 4; // browsers open six connections a host; the rest stay free for the page
const PATIENCE = 5; // times that all wait as long as the server asks, without an answer in between, before a person is told
const WORDS = {
  EMPTY: "The file is empty.",
  NOT_AN_IMAGE: "This is not a picture.",
  UNSUPPORTED_FORMAT: "This kind of picture is not read here; try JPEG, PNG or WebP.",
  TRUNCATED: "The end of the picture is missing.",
  CORRUPT: "The picture is damaged.",
  TOO_MANY_PIXELS: "The picture has too many pixels.",
  TOO_LARGE: "The file is too large.",
  RESOURCE_EXHAUSTED: "The server takes no more just now.",
  UNAVAILABLE: "The server is not ready.",
  DEADLINE_EXCEEDED: "The server took too long.",
  UNREACHABLE: "The server did not answer; is it running, or is the file too large?",
  UNAUTHENTICATED: "The token is not valid any more; reload the page to give another.",
};
const AGAIN = new Set(["RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNREACHABLE", "INTERNAL"]);

const byId = (id) => document.getElementById(id);
const [drop, files, camera, model, answers, status, said] = ["drop", "files", "camera", "model", "answers", "status", "said"].map(byId);
const waiting = [];
let asking = 0;
let pasted = 0;
let heldUntil = 0; // the server wants no more before that
let held = 0; // times in a row
let token = null;
try {
  token = sessionStorage.getItem("token"); // until the tab is closed
} catch { /* the browser keeps nothing: then until the page is */ }

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const call = (path, { headers, ...options } = {}) =>
  fetch(path, { ...options, headers: { ...headers, ...(token && { authorization: `Bearer ${token}` }) } });

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function say(text) {
  said.append(element("p", text));
  if (said.children.length > 20) said.firstElementChild.remove();
}

function tokenGiven() {
  const gate = byId("gate");
  byId("refused").textContent = token ? "The server does not know this token." : "";
  gate.hidden = false;
  byId("token").focus();
  return new Promise((resolve) => {
    gate.onsubmit = (event) => {
      event.preventDefault();
      const given = byId("token").value.trim();
      if (!/^[!-~]+$/.test(given)) { // no header can carry it: fetch would fail before it asks
        byId("refused").textContent = "This is no token; paste it as it was printed.";
        return;
      }
      token = given;
      try {
        sessionStorage.setItem("token", token);
      } catch { /* as above */ }
      gate.hidden = true;
      byId("choose").focus();
      resolve();
    };
  });
}

async function showModels() {
  let models;
  try {
    let answer = await call("v1/models");
    while (answer.status === 401) {
      await tokenGiven();
      answer = await call("v1/models");
    }
    if (!answer.ok) throw new Error(answer.statusText);
    models = (await answer.json()).models.filter((one) => one.answers);
  } catch {
    byId("about").textContent = "The server does not say which models it has; reload the page in a moment.";
    return;
  }
  if (!models.length) {
    byId("about").textContent = "No model is ready yet; reload the page in a moment.";
    return;
  }
  for (const { name, default: isDefault } of models) model.append(new Option(name, name, isDefault, isDefault));
  byId("chooser").hidden = models.length < 2;
  const describe = () => {
    const { name, version, labels } = models.find((one) => one.name === model.value);
    const some = labels.slice(0, 6).join(", ");
    byId("about").textContent = `${name}, version ${version}, tells ${labels.length} things apart: ${some}${labels.length > 6 ? " …" : ""}`;
  };
  model.addEventListener("change", describe);
  describe();
}

function add(pictures) {
  for (const picture of pictures) {
    const card = byId("card").content.firstElementChild.cloneNode(true);
    const image = card.querySelector("img");
    const release = () => URL.revokeObjectURL(image.src);
    image.addEventListener("load", release, { once: true });
    image.addEventListener("error", () => {
      release();
      image.hidden = true;
      card.querySelector(".nothumb").hidden = false;
    }, { once: true });
    image.src = URL.createObjectURL(picture);
    card.querySelector("h2").textContent = picture.name || `pasted picture ${++pasted}`;
    answers.prepend(card);
    waiting.push({ picture, card });
  }
  next();
}

function next() {
  while (asking < AT_ONCE && waiting.length) {
    asking += 1;
    ask(waiting.shift()).finally(() => {
      asking -= 1;
      next();
    });
  }
  showStatus();
}

function showStatus() {
  const left = asking + waiting.length;
  const heldS = Math.ceil((heldUntil - performance.now()) / 1000);
  const told = heldS > 0 ? `${WORDS.RESOURCE_EXHAUSTED} Asking again in ${heldS} s …` : `Looking at ${left} ${left === 1 ? "picture" : "pictures"} …`;
  const text = left ? told : "";
  if (status.textContent !== text) status.textContent = text; // else it would be read out again
}

async function ask(job) {
  if (!job.picture.size) return showError(job, { code: "EMPTY" }); // a request without a body is no question
  await modelsKnown; // or the first picture would name none, which is an error where there are several
  const path = model.value ? `v1/models/${encodeURIComponent(model.value)}:classify` : "v1/classify";
  while (performance.now() < heldUntil) await pause(heldUntil - performance.now());
  showStatus();
  const started = performance.now();
  let answer, told;
  try {
    answer = await call(path, { method: "POST", body: job.picture, headers: { "content-type": "application/octet-stream" } });
    told = await answer.json().catch(() => ({})); // of a proxy
  } catch {
    return showError(job, { code: "UNREACHABLE" });
  }
  const tookMs = performance.now() - started;
  if (answer.status === 429) {
    if (performance.now() >= heldUntil) { // the first to hear it
      held += 1;
      heldUntil = performance.now() + 1000 * Number(answer.headers.get("retry-after") ?? 1);
      showStatus();
    }
    if (held <= PATIENCE) return ask(job);
  }
  if (!answer.ok || !told.results) return showError(job, errorOf(answer, told));
  held = 0;
  const [result] = told.results;
  if (result.error) return showError(job, result.error);
  showPredictions(job, result);
  const serverMs = Number(/dur=([\d.]+)/.exec(answer.headers.get("server-timing") ?? "")?.[1] ?? NaN);
  const inServer = Number.isNaN(serverMs) ? "" : ` (${milliseconds(serverMs)} in the server)`;
  job.card.querySelector(".facts").textContent = `${milliseconds(tookMs)}${inServer} · ${told.model}, version ${told.version}`;
}

function errorOf({ status: code }, { error }) {
  const ofStatus = { 413: "TOO_LARGE", 429: "RESOURCE_EXHAUSTED", 502: "UNAVAILABLE", 503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED" };
  return { code: code === 413 ? "TOO_LARGE" : error?.status ?? ofStatus[code], message: error?.message ?? `The server answered with ${code}.` };
}

const milliseconds = (value) => `${value.toFixed(value < 10 ? 1 : 0)} ms`;
const percent = (score) => `${(100 * score).toFixed(1)} %`;

function showPredictions(job, { predictions, unknown }) {
  const bars = element("ol", undefined, "bars");
  for (const { label, score } of predictions) {
    const row = element("li");
    const bar = element("i");
    bar.style.width = percent(score).replace(" ", "");
    row.append(bar, element("span", label), element("span", percent(score), "score"));
    bars.append(row);
  }
  const best = predictions[0] ? `${predictions[0].label}, ${percent(predictions[0].score)}` : "";
  say(`${nameOf(job)}: ${unknown ? "unlike anything it was trained on" : best}`);
  fill(job, ...(unknown ? [element("p", "Unlike anything it was trained on. If it must be one of these:", "unlike")] : []), bars);
}

function showError(job, { code, message }) {
  const text = WORDS[code] ?? message;
  const parts = [element("p", text, "wrong")];
  say(`${nameOf(job)}: ${text}`);
  if (AGAIN.has(code)) {
    const again = element("button", "Try again", "second");
    again.type = "button";
    again.addEventListener("click", () => {
      held = 0;
      fill(job, element("p", "Looking …", "working"));
      job.card.focus(); // the button is gone: the keyboard would be at the top of the page again
      waiting.push(job);
      next();
    });
    parts.push(again);
  }
  fill(job, ...parts);
}

const nameOf = (job) => job.card.querySelector("h2").textContent;
const fill = (job, ...parts) => job.card.querySelector(".body").replaceChildren(...parts);

function addFrom(input) {
  add(input.files);
  input.value = ""; // so that the same file can be chosen twice
}

byId("choose").addEventListener("click", () => files.click());
byId("take").addEventListener("click", () => camera.click());
for (const input of [files, camera]) input.addEventListener("change", () => addFrom(input));

document.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) drop.classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (event.dataTransfer.files.length) add(event.dataTransfer.files);
  else status.textContent = "Nothing to look at there; drop picture files.";
});
document.addEventListener("paste", (event) => {
  if (event.target instanceof HTMLInputElement) return; // a token
  const pictures = [...event.clipboardData.files];
  if (pictures.length) add(pictures);
  else status.textContent = "There is no picture in the clipboard.";
});

const modelsKnown = showModels();

// The page: takes pictures, asks the server about each, shows what it says. No library, no markup from text.
"use strict";

const AT_ONCE = 4; // browsers open six connections a host; the rest stay free for the page
const PATIENCE = 5; // times that a picture waits as long as the server asks, before a person is told
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
  UNAUTHENTICATED: "The token is not valid any more; reload the page to give another.",
};
const AGAIN = new Set(["RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNREACHABLE", "INTERNAL"]);

const byId = (id) => document.getElementById(id);
const [drop, files, camera, model, answers, status] = ["drop", "files", "camera", "model", "answers", "status"].map(byId);
const waiting = [];
let asking = 0;
let pasted = 0;

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

const call = (path, { headers, ...options } = {}) => {
  const token = sessionStorage.getItem("token"); // until the tab is closed
  return fetch(path, { ...options, headers: { ...headers, ...(token && { authorization: `Bearer ${token}` }) } });
};

function tokenGiven() {
  const gate = byId("gate");
  byId("refused").textContent = sessionStorage.getItem("token") ? "The server does not know this token." : "";
  gate.hidden = false;
  byId("token").focus();
  return new Promise((resolve) => {
    gate.onsubmit = (event) => {
      event.preventDefault();
      const token = byId("token").value.trim();
      if (!/^[!-~]+$/.test(token)) { // no header can carry it: fetch would fail before it asks
        byId("refused").textContent = "This is no token; paste it as it was printed.";
        return;
      }
      sessionStorage.setItem("token", token);
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
  for (const { name } of models) model.append(new Option(name, name));
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
  const left = asking + waiting.length;
  status.textContent = left ? `Looking at ${left} ${left === 1 ? "picture" : "pictures"} …` : "";
}

async function ask(job) {
  if (!job.picture.size) return showError(job, { code: "EMPTY" }); // a request without a body is no question
  await modelsKnown; // or the first picture would name none, which is an error where there are several
  const path = model.value ? `v1/models/${encodeURIComponent(model.value)}:classify` : "v1/classify";
  const started = performance.now();
  let answer, told;
  try {
    answer = await call(path, { method: "POST", body: job.picture, headers: { "content-type": "application/octet-stream" } });
    told = await answer.json();
  } catch {
    return showError(job, { code: "UNREACHABLE", message: "The server did not answer; is it running, or is the file too large?" });
  }
  const tookMs = performance.now() - started;
  if (answer.status === 429 && (job.waits = (job.waits ?? 0) + 1) <= PATIENCE) {
    await new Promise((resolve) => setTimeout(resolve, 1000 * Number(answer.headers.get("retry-after") ?? 1)));
    return ask(job);
  }
  if (!answer.ok) return showError(job, { code: answer.status === 413 ? "TOO_LARGE" : told.error.status, message: told.error.message });
  const [result] = told.results;
  if (result.error) return showError(job, result.error);
  showPredictions(job, result);
  const serverMs = Number(/dur=([\d.]+)/.exec(answer.headers.get("server-timing") ?? "")?.[1] ?? NaN);
  const inServer = Number.isNaN(serverMs) ? "" : ` (${milliseconds(serverMs)} in the server)`;
  job.card.querySelector(".facts").textContent = `${milliseconds(tookMs)}${inServer} · ${told.model}, version ${told.version}`;
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
  fill(job, ...(unknown ? [element("p", "Unlike anything it was trained on. If it must be one of these:", "unlike")] : []), bars);
}

function showError(job, { code, message }) {
  const parts = [element("p", WORDS[code] ?? message, "wrong")];
  if (AGAIN.has(code)) {
    const again = element("button", "Try again", "second");
    again.type = "button";
    again.addEventListener("click", () => {
      job.waits = 0;
      fill(job, element("p", "Looking …", "working"));
      job.card.focus(); // the button is gone: the keyboard would be at the top of the page again
      waiting.push(job);
      next();
    });
    parts.push(again);
  }
  fill(job, ...parts);
}

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

// The page: begin a stream, list those that there are, and watch one or two of them side by side.
// The address says which: "#STREAM" or "#STREAM+OTHER".

import { Api } from "./api.js";
import { drawSeed, make, partsOf, setText } from "./dom.js";
import { Panel } from "./panel.js";

const MOST = 2; // side by side
const LISTED = 3_000; // milliseconds between two looks at the list
const LEARNED = 2_000; // between two questions about a model that is loading
const SHOWN = 8_000; // milliseconds that an alert stays
const STATES = { running: "Live", paused: "Paused", asleep: "Asleep", ended: "Ended", failed: "Failed" };

const parts = partsOf(document);
const api = new Api();
let panels = [];
let facts = { mode: "refresh", examples: [] };
let lister = null;
let opening = {}; // by stream: how it is opened when the address changes

const page = {
  api,
  get facts() {
    return facts;
  },
  alert,
  locked,
  closed: (panel) => show(panels.filter((other) => other !== panel).map(({ stream }) => stream)),
  gone(panel) {
    alert(`Stream ${panel.stream} was ended.`, "note");
    page.closed(panel);
  },
  forked(panel, stream) {
    opening[stream] = { after: -1, since: performance.now() };
    show([panel.stream, stream]);
  },
};

// Read only, and without secrets: what tests look at, and whoever wants to know how it plays.
Object.defineProperty(globalThis, "arl2", {
  value: Object.freeze({
    get panels() {
      return panels.map((panel) => panel.report);
    },
  }),
});

/** Say something for a while. */
function alert(text, kind = "error") {
  const close = make("button", { type: "button", className: "icon", text: "×", "aria-label": "Dismiss" });
  const line = make("p", { className: kind }, make("span", { text }), close);
  const timer = setTimeout(() => line.remove(), SHOWN);
  close.addEventListener("click", () => {
    clearTimeout(timer);
    line.remove();
  });
  for (const other of parts.alerts.children) if (other.firstChild.textContent === text) other.remove();
  parts.alerts.append(line);
}

function locked() {
  parts.keyButton.hidden = false;
  if (api.hasKey) alert("The server does not know this key.");
  if (!parts.keyDialog.open) parts.keyDialog.showModal();
}

/** Do something for a button, and say what went wrong. */
async function trying(button, act) {
  if (button?.getAttribute("aria-busy") === "true") return;
  button?.setAttribute("aria-busy", "true");
  try {
    await act();
  } catch (error) {
    if (error.status === 401) locked();
    else alert(error.retryAfter ? `${error.message} Try again in ${error.retryAfter} s.` : error.message);
  } finally {
    button?.removeAttribute("aria-busy");
  }
}

/** Put streams into the address, which then shows them. */
function show(streams) {
  const hash = streams.length ? `#${streams.map(encodeURIComponent).join("+")}` : "#";
  if (location.hash === hash || (hash === "#" && !location.hash)) route();
  else location.hash = hash;
}

function wanted() {
  try {
    return [...new Set(location.hash.slice(1).split("+").filter(Boolean).map(decodeURIComponent))].slice(-MOST);
  } catch {
    return []; // an address that somebody mistyped
  }
}

function route() {
  const streams = wanted();
  for (const panel of panels) if (!streams.includes(panel.stream)) panel.close();
  panels = streams.map((stream) => {
    const open = panels.find((panel) => panel.stream === stream);
    if (open !== undefined) return open;
    return new Panel(page, parts.panelTemplate, stream, opening[stream]);
  });
  opening = {};
  for (const [i, panel] of panels.entries()) {
    if (parts.panels.children[i] !== panel.element) parts.panels.insertBefore(panel.element, parts.panels.children[i] ?? null);
  }
  const home = panels.length === 0;
  parts.home.hidden = !home;
  parts.homeLink.hidden = home;
  parts.footer.hidden = home;
  parts.panels.dataset.count = String(panels.length);
  document.title = home ? "arl2 live" : `${streams.join(" + ")} · arl2 live`;
  clearInterval(lister);
  if (home) {
    list();
    lister = setInterval(list, LISTED);
  }
}

async function list() {
  if (document.hidden) return;
  try {
    showList(await api.streams());
  } catch (error) {
    if (error.status === 401 && !parts.keyDialog.open && parts.keyButton.hidden) locked();
    // The server may be away for a moment; the list is asked for again.
  }
}

function showList(streams) {
  parts.streamsSection.hidden = streams.length === 0;
  const rows = new Map([...parts.streams.children].map((row) => [row.dataset.stream, row]));
  for (const info of [...streams].reverse()) {
    const row = rows.get(info.id) ?? newRow(info.id);
    rows.delete(info.id);
    const [state, prompt, facts_] = row.firstElementChild.children;
    row.dataset.state = info.state;
    setText(state, STATES[info.state] ?? info.state);
    setText(prompt, info.prompt);
    const watching = info.viewers === 1 ? "1 viewer" : `${info.viewers} viewers`;
    setText(facts_, [info.request.name, `block ${info.block}`, info.state === "failed" ? info.error : watching,
      info.id].filter(Boolean).join(" · "));
    if (parts.streams.lastElementChild !== row) parts.streams.append(row);
  }
  for (const row of rows.values()) row.remove();
}

function newRow(stream) {
  const open = make("a", { href: `#${encodeURIComponent(stream)}` },
    make("span", { className: "badge" }), make("b"), make("small"));
  const remove = make("button", { type: "button", className: "icon", "aria-label": `Remove stream ${stream}`, title: "Remove" });
  remove.append(parts.panelTemplate.content.querySelector("[data-part=close] svg").cloneNode(true));
  let sure = false;
  remove.addEventListener("click", () => {
    if (!sure) {
      sure = true;
      remove.classList.add("sure");
      remove.title = "Once more to remove it";
      remove.setAttribute("aria-label", `Once more to remove stream ${stream}`);
      return;
    }
    trying(remove, async () => {
      await api.remove(stream);
      await list();
    });
  });
  remove.addEventListener("blur", () => {
    sure = false;
    remove.classList.remove("sure");
    remove.title = "Remove";
  });
  const row = make("li", {}, open, remove);
  row.dataset.stream = stream;
  return row;
}

function begin(event) {
  event.preventDefault();
  const since = performance.now();
  trying(parts.start, async () => {
    const seed = parts.startSeed.value === "" ? null : Number(parts.startSeed.value);
    const info = await api.create({ prompt: parts.startPrompt.value.trim(), seed });
    opening[info.id] = { after: -1, since };
    show([info.id]);
  });
}

async function load() {
  const [file] = parts.snapshotFile.files;
  if (file === undefined) return;
  const since = performance.now();
  await trying(parts.start, async () => {
    const info = await api.load(file);
    opening[info.id] = { after: -1, since };
    show([info.id]);
  });
  parts.snapshotFile.value = ""; // the same file can be chosen again
}

async function learn() {
  try {
    facts = await api.examples();
  } catch (error) {
    if (error.status === 401) locked();
    else {
      setText(parts.model, error.status === 503 ? "The model is loading …" : error.message);
      setTimeout(learn, LEARNED);
    }
    return;
  }
  setText(parts.model, `${facts.name} · ${facts.width} × ${facts.height} · ${facts.fps} frames a second`);
  parts.examples.replaceChildren(...facts.examples.map((prompt) => {
    const chip = make("button", { type: "button", className: "chip", text: prompt });
    chip.addEventListener("click", () => {
      parts.startPrompt.value = prompt;
      parts.start.focus();
    });
    return chip;
  }));
  if (facts.examples.length) parts.startPrompt.placeholder = facts.examples[0];
}

/** The panel that keys act on: the one with the focus, or else the first. */
function active() {
  return panels.find(({ element }) => element.contains(document.activeElement)) ?? panels[0];
}

function key(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || parts.keyDialog.open) return;
  const target = event.target;
  const typing = target.matches("textarea, input:not([type=checkbox]):not([type=radio]):not([type=range])");
  if (typing) return;
  const acts = {
    "/": () => (panels.length ? active().focusPrompt() : parts.startPrompt.focus()),
  };
  if (panels.length) {
    if (!target.matches("button, a, input, label")) acts[" "] = () => active().togglePause();
    if (target.matches("input[type=range]")) acts[" "] = () => active().togglePause();
    else if (!target.matches("input")) {
      acts.ArrowLeft = () => active().choose(-1);
      acts.ArrowRight = () => active().choose(1);
    }
  }
  const act = acts[event.key];
  if (act === undefined) return;
  event.preventDefault();
  act();
}

parts.startForm.addEventListener("submit", begin);
parts.startPrompt.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    parts.startForm.requestSubmit(parts.start);
  }
});
parts.dice.addEventListener("click", () => {
  parts.startSeed.value = String(drawSeed());
});
parts.snapshotFile.addEventListener("change", load);
parts.keyButton.addEventListener("click", () => parts.keyDialog.showModal());
parts.keyForm.addEventListener("submit", () => {
  api.setKey(parts.keyField.value);
  parts.keyField.value = "";
  parts.keyButton.hidden = false;
  const streams = panels.map(({ stream }) => stream);
  for (const panel of panels) panel.close();
  panels = [];
  learn();
  if (streams.length) show(streams);
  else list();
});
addEventListener("keydown", key);
addEventListener("hashchange", route);
document.addEventListener("visibilitychange", () => {
  if (!document.hidden) for (const panel of panels) panel.reconnect();
});
learn().finally(route);

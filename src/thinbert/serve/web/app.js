// The page: asks the server, shows answers in their place, keeps the list of documents. No library, no build.

const $ = (id) => document.getElementById(id);

// An element with text, attributes and children; text is always text, never markup.
function make(tag, { text, ...attributes } = {}, ...children) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

// --- the server ----------------------------------------------------------------------------------------------------

const key = { get value() { return sessionStorage.getItem("key"); }, set value(v) { sessionStorage.setItem("key", v); } };
const headers = () => (key.value ? { Authorization: `Bearer ${key.value}` } : {});

class Fault extends Error {}

async function call(method, path, json) {
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: json === undefined ? headers() : { ...headers(), "Content-Type": "application/json" },
      body: json === undefined ? undefined : JSON.stringify(json),
    });
  } catch {
    throw new Fault("The server cannot be reached. Is it still running?");
  }
  if (response.status === 401) {
    $("key").hidden = false;
    $("key-value").focus();
    throw new Fault("A key is needed.");
  }
  if (response.status === 204) return null;
  const body = await response.json().catch(() => ({}));
  if (!response.ok) throw Object.assign(new Fault(body.error || `The server answered ${response.status}.`), { status: response.status });
  return body;
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key.value = $("key-value").value;
  $("key").hidden = true;
  refresh();
});

// --- asking ----------------------------------------------------------------------------------------------------------

const where = () => document.querySelector("input[name=where]:checked").value;

for (const radio of document.querySelectorAll("input[name=where]")) radio.addEventListener("change", arrange);

function arrange() {
  $("pasted").hidden = where() !== "text";
}

$("ask").addEventListener("submit", async (event) => {
  event.preventDefault();
  const question = $("question").value.trim();
  const context = where() === "text" ? $("text").value : undefined;
  if (!question) return;
  if (context !== undefined && !context.trim()) {
    show(fault("Paste a text first."));
    $("text").focus();
    return;
  }
  $("result").setAttribute("aria-busy", "true");
  $("go").disabled = true;
  try {
    const asked = performance.now();
    const found = await call("POST", "/v1/ask", { question, context, top_k: 5 });
    show(...answers(found, context, performance.now() - asked));
  } catch (e) {
    show(fault(e.message));
  } finally {
    $("go").disabled = false;
    $("result").setAttribute("aria-busy", "false");
  }
});

function show(...elements) {
  $("result").replaceChildren(...elements);
}

const fault = (message) => make("div", { class: "card fault", role: "alert", text: message });

function answers(found, context, milliseconds) {
  const timing = make("p", {
    class: "dim",
    text: `${found.passages_read} ${found.passages_read === 1 ? "passage" : "passages"} read in ` +
      `${Math.round(1000 * found.seconds)} ms (${Math.round(milliseconds)} ms with the way here)`,
  });
  if (context === undefined && !found.passages_read) {
    return [make("div", { class: "card none" }, make("div", { class: "answer", text: "There are no documents yet: add some below" }))];
  }
  if (found.answer === null) {
    const none = make("div", { class: "card none" },
      make("div", { class: "answer", text: context === undefined ? "No answer in these documents" : "No answer in this text" }),
      make("p", { class: "dim", text: `Probability that there is none: ${percent(found.no_answer)}.` }));
    const nearest = found.rejected
      ? [make("h2", { text: "Nearest candidate, rejected" }), citation(found.rejected, context, true)] : [];
    return [none, ...nearest, timing];
  }
  for (const c of found.citations) c.stale = found.stale.includes(c.document);
  const best = found.citations[0];
  const others = found.citations.slice(1).filter((c) => c.score >= 0.01); // less is noise
  const rest = others.length
    ? [make("details", {}, make("summary", { text: `${others.length} more` }), ...others.map((c) => citation(c, context, true)))]
    : [];
  return [citation(best, context, false), ...rest, timing];
}

const percent = (share) => `${(100 * share).toFixed(share > 0.995 || share < 0.005 ? 1 : 0)} %`;

// What a page is called: of a file of records, each is one.
const unit = (file) => (/\.(csv|tsv|jsonl|ndjson)$/i.test(file) ? "line" : /\.json$/i.test(file) ? "paragraph" : "page");

function citation(c, context, small) {
  const from = chars(c.sentence, c.start - c.sentence_start);
  const to = chars(c.sentence, c.end - c.sentence_start);
  const quote = make("blockquote", {}, c.sentence.slice(0, from), make("mark", { text: c.sentence.slice(from, to) }), c.sentence.slice(to));
  const label = c.page_label && c.page_label !== String(c.page) ? ` (${c.page_label})` : "";
  const page = c.page > 1 || c.page_label ? `, ${unit(c.file)} ${c.page}${label}` : "";
  const place = context === undefined ? `${c.file}${page}` : `line ${c.line}`;
  const also = c.also.length ? ` · also in ${[...new Set(c.also.map((p) => p.file))].join(", ")}` : "";
  return make("article", { class: small ? "card small" : "card" },
    make("div", { class: "answer", text: c.answer }),
    quote,
    make("div", { class: "place" },
      make("span", {}, make("meter", { min: 0, max: 1, value: c.score, "aria-label": "score" }), ` ${percent(c.score)}`),
      make("span", { text: `${place}${c.heading ? ` · ${c.heading}` : ""}${also}` }),
      ...(c.stale ? [make("span", { class: "dim", text: "changed or gone since it was indexed" })] : []),
      make("button", { type: "button", text: "Show in place", onclick: () => open(c, context) })));
}

// Places are counted in characters, JavaScript's strings in halves of some of them.
function chars(text, count) {
  let at = 0;
  for (const character of text) {
    if (count-- <= 0) break;
    at += character.length;
  }
  return at;
}

// --- the source ------------------------------------------------------------------------------------------------------

let opening = 0; // the last page that was asked for

async function open(c, context, page = c.page) {
  const own = context !== undefined, number = ++opening;
  let found = { text: context, label: "", before: null, after: null };
  $("source-title").textContent = c.file;
  try {
    if (!own) found = await call("GET", `/v1/documents/${c.document}/pages/${page}`);
    if (number !== opening) return; // closed, or another page, since
    $("source-title").textContent = own ? "Pasted text" : `${c.file}, ${unit(c.file)} ${page}${found.label && found.label !== String(page) ? ` (${found.label})` : ""}`;
    const from = chars(found.text, c.start), to = chars(found.text, c.end);
    const place = found.text.slice(from, to);
    if (page !== c.page) $("page").replaceChildren(found.text);
    else if (place === c.answer) $("page").replaceChildren(found.text.slice(0, from), make("mark", { text: place }), found.text.slice(to));
    else $("page").replaceChildren(make("p", { class: "dim", text: "The page has changed since it was answered from; ask again to see the place." }), found.text);
  } catch (e) {
    if (number !== opening) return;
    $("page").replaceChildren(fault(e.message));
  }
  $("original").hidden = own || Boolean(key.value); // a plain link cannot carry a key
  if (!own) $("original").href = `/v1/documents/${c.document}/file#page=${page}`;
  $("turn").hidden = own;
  for (const to of ["before", "after"]) {
    $(to).disabled = found[to] === null;
    $(to).onclick = () => open(c, context, found[to]);
  }
  if (!$("source").open) $("source").showModal();
  const mark = $("page").querySelector("mark");
  if (mark) mark.scrollIntoView({ block: "center" });
  else $("page").scrollTop = 0;
}

$("close").addEventListener("click", () => $("source").close());
$("source").addEventListener("close", () => { opening += 1; });
$("source").addEventListener("click", (event) => event.target === $("source") && $("source").close());

// --- documents -------------------------------------------------------------------------------------------------------

async function refresh() {
  try {
    const documents = await call("GET", "/v1/documents");
    $("count").textContent = `(${documents.length})`;
    $("list").replaceChildren(...documents.map(entry));
    if (!documents.length) $("list").replaceChildren(make("li", { class: "dim", text: "None yet." }));
  } catch (e) {
    if (e.status === 404) { // a server without documents
      $("library").hidden = true;
      document.querySelector("input[value=documents]").disabled = true;
      document.querySelector("input[value=text]").checked = true;
      arrange();
    } else {
      $("list").replaceChildren(make("li", {}, fault(e.message)));
    }
  }
}

function entry(d) {
  const size = d.size > 1e6 ? `${(d.size / 1e6).toFixed(1)} MB` : `${Math.max(1, Math.round(d.size / 1e3))} kB`;
  const name = { line: "record" }[unit(d.name)] ?? unit(d.name);
  const pages = `${d.pages} ${name}${d.pages === 1 ? "" : "s"}`;
  const remove = make("button", { type: "button", text: "Remove", "aria-label": `Remove ${d.name}`, onclick: async () => {
    try {
      await call("DELETE", `/v1/documents/${d.id}`);
      notice(`${d.name} removed.`);
    } catch (e) {
      notice(e.message, true);
    }
    await refresh();
    ($("list").querySelector("button") ?? $("files")).focus(); // the button that had it is gone
  } });
  const notes = d.notes.length ? ` · ${d.notes.join("; ")}` : "";
  return make("li", {}, make("span", { class: "name", text: d.name }), make("span", { class: "dim", text: `${pages}, ${size}${notes}` }),
    ...(d.uploaded ? [remove] : []));
}

function notice(text, bad = false) {
  $("uploads").append(make("p", { class: bad ? "fault" : "dim", role: bad ? "alert" : undefined, text }));
}

let waiting = 0; // files that are not through yet
let uploads = Promise.resolve();

function upload(files) {
  if (!waiting) $("uploads").replaceChildren();
  for (const file of files) {
    waiting += 1;
    uploads = uploads.then(() => add(file)).finally(() => { waiting -= 1; });
  }
}

async function add(file) {
  const line = make("p", { class: "dim", text: `${file.name} …` });
  const bar = make("progress", { max: 1, value: 0, "aria-label": `Uploading ${file.name}` });
  $("uploads").append(line, bar);
  try {
    const answer = await send(file, (share) => {
      bar.value = share;
      if (share === 1) line.textContent = `${file.name} is being read …`;
    });
    line.textContent = answer.added[0].new ? `${file.name} added.` : `${file.name} was there already.`;
  } catch (e) {
    line.className = "fault";
    line.setAttribute("role", "alert");
    line.textContent = e.message.startsWith(file.name) ? e.message : `${file.name}: ${e.message}`;
  }
  bar.remove();
  await refresh();
}

// fetch cannot tell how much was sent; this can.
function send(file, progress) {
  return new Promise((resolve, reject) => {
    const form = new FormData();
    form.append("files", file);
    const request = new XMLHttpRequest();
    request.upload.addEventListener("progress", (e) => e.lengthComputable && progress(e.loaded / e.total));
    request.addEventListener("load", () => {
      let body = {};
      try { body = JSON.parse(request.responseText); } catch { /* not ours */ }
      if (request.status === 401) $("key").hidden = false;
      if (request.status < 300) resolve(body);
      else reject(new Fault(body.error || `the server answered ${request.status}`));
    });
    request.addEventListener("error", () => reject(new Fault("the server cannot be reached, or the file is too large")));
    request.open("POST", "/v1/documents");
    for (const [name, value] of Object.entries(headers())) request.setRequestHeader(name, value);
    request.send(form);
  });
}

$("files").addEventListener("change", (event) => {
  upload([...event.target.files]);
  event.target.value = "";
});
const ofFiles = (event) => event.dataTransfer?.types.includes("Files"); // and not of text, which goes into fields
for (const name of ["dragover", "dragenter"]) {
  document.addEventListener(name, (event) => {
    if (!ofFiles(event)) return;
    event.preventDefault();
    $("drop").classList.add("over");
  });
}
for (const name of ["dragleave", "drop"]) document.addEventListener(name, (event) => {
  if (!ofFiles(event)) return;
  event.preventDefault();
  if (name === "drop" || !event.relatedTarget) $("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => event.dataTransfer?.files.length && !$("library").hidden && upload([...event.dataTransfer.files]));

arrange();
refresh();

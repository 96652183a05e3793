// Controls and what the server answers; every number comes from there.
const address = new URL(location);
if (address.searchParams.has("token")) { // it is in a cookie now, and need not stay in the history
  address.searchParams.delete("token");
  history.replaceState(null, "", address);
}

function figure(element) {
  const form = element.querySelector("form"), part = (name) => element.querySelector(name);
  let running = false, again = false;

  async function update() {
    if (running) { again = true; return; } // one request at a time: the newest position counts
    running = true;
    const query = new URLSearchParams(new FormData(form));
    query.set("width", String(Math.max(240, Math.min(1200, Math.floor(part(".pictures").clientWidth)))));
    try {
      const answer = await fetch(`/figure/${element.dataset.figure}?${query}`);
      if (answer.ok) {
        const { pictures, values, says } = await answer.json();
        part(".pictures").innerHTML = pictures;
        part(".values").innerHTML = values;
        part(".says").innerHTML = says;
        part(".says").classList.remove("wrong");
        element.dataset.shown = query;
      } else fail(await answer.text());
    } catch { fail("The server no longer answers: start surefoot lesson again."); }
    running = false;
    if (again) { again = false; update(); }
  }

  function fail(text) {
    part(".says").textContent = text;
    part(".says").classList.add("wrong");
  }

  form.addEventListener("input", (event) => {
    const output = event.target.parentElement.querySelector("output");
    if (output) output.textContent = event.target.value.replace("-", "−");
    update();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  for (const button of form.querySelectorAll(".again")) button.addEventListener("click", () => {
    const seed = button.nextElementSibling;
    seed.value = Number(seed.value) + 1;
    update();
  });
  let width = 640;
  new ResizeObserver(() => {
    if (Math.abs(part(".pictures").clientWidth - width) > 8) { width = part(".pictures").clientWidth; update(); }
  }).observe(part(".pictures"));
}

function quiz(form) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const given = Object.fromEntries(new FormData(form));
    const answer = await fetch("/quiz", { method: "POST", body: JSON.stringify({ seed: form.dataset.seed, ...given }) });
    if (!answer.ok) return tell(form.querySelector("[role=status]"), false, await answer.text());
    for (const [name, { right, says }] of Object.entries(await answer.json()))
      tell(form.querySelector(`#quiz-${name}-says`), right, says);
  });
  form.querySelector(".another").addEventListener("click", async () => {
    const answer = await fetch(`/quiz/${Number(form.dataset.seed) + 1}`);
    if (!answer.ok) return;
    const holder = document.createElement("div");
    holder.innerHTML = await answer.text();
    const next = holder.firstElementChild;
    form.replaceWith(next);
    quiz(next);
    next.querySelector("input").focus();
  });
}

function tell(element, right, text) {
  element.textContent = text;
  element.className = right ? "right" : "wrong";
}

function notes(section) { // a note and its line light up together
  for (const item of section.querySelectorAll("li[id], .noted")) {
    const other = document.getElementById(item.id.replace(/^(note|line)/, (kind) => (kind === "note" ? "line" : "note")));
    for (const [on, off] of [["mouseenter", "mouseleave"], ["focusin", "focusout"]]) {
      item.addEventListener(on, () => { item.classList.add("lit"); other.classList.add("lit"); });
      item.addEventListener(off, () => { item.classList.remove("lit"); other.classList.remove("lit"); });
    }
  }
}

document.querySelectorAll("figure.play").forEach(figure);
document.querySelectorAll("form.quiz").forEach(quiz);
document.querySelectorAll("section.source").forEach(notes);

function exercise(form) {
  const text = form.querySelector("textarea"), verdicts = form.querySelector(".verdicts"), button = form.querySelector("button");
  const key = `exercise-${form.dataset.exercise}`, template = text.value;
  text.value = localStorage.getItem(key) ?? template;
  text.addEventListener("input", () => localStorage.setItem(key, text.value));
  text.addEventListener("keydown", (event) => { // a new line keeps the indentation; Tab is left to the keyboard's users
    if (event.key !== "Enter") return;
    event.preventDefault();
    const line = text.value.slice(0, text.selectionStart).split("\n").pop();
    const more = line.trimEnd().endsWith(":") ? "    " : "";
    text.setRangeText(`\n${line.match(/^ */)[0]}${more}`, text.selectionStart, text.selectionEnd, "end");
    text.dispatchEvent(new Event("input"));
  });
  form.querySelector(".reset").addEventListener("click", () => {
    text.value = template;
    localStorage.removeItem(key);
    verdicts.replaceChildren();
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    verdicts.replaceChildren(line("running your function against the laws ..."));
    try {
      const body = JSON.stringify({ source: text.value });
      const answer = await fetch(`/exercise/${form.dataset.exercise}`, { method: "POST", body });
      verdicts.replaceChildren(...(answer.ok ? (await answer.json()).map(verdict) : [line(await answer.text(), "wrong")]));
    } catch { verdicts.replaceChildren(line("The server no longer answers: start surefoot lesson again.", "wrong")); }
    button.disabled = false;
  });
}

function line(words, kind = "") {
  const item = document.createElement("li");
  item.textContent = words;
  item.className = kind;
  return item;
}

function verdict({ law, passed, message, mistake }) {
  return line(`${passed ? "✓" : "✗"} ${mistake || law}${message ? `: ${message}` : ""}`, passed ? "right" : "wrong");
}

document.querySelectorAll("form.exercise").forEach(exercise);

function live(form) {
  const part = (name) => form.querySelector(name), pause = part(".pause");
  const settings = () => Object.fromEntries(new FormData(form));
  let socket = null, paused = false, training = false;

  function send(message) {
    const width = Math.max(240, Math.min(1200, Math.floor(part(".pictures").clientWidth)));
    const text = JSON.stringify({ width, ...message });
    if (socket?.readyState === WebSocket.OPEN) return socket.send(text);
    socket = new WebSocket(`ws://${location.host}/live`);
    socket.onopen = () => socket.send(text);
    socket.onmessage = (event) => show(JSON.parse(event.data));
    socket.onclose = () => { training = false; pause.disabled = true; };
  }

  function show({ pictures, values, says, ended }) {
    part(".says").innerHTML = says;
    if (pictures) part(".pictures").innerHTML = pictures;
    if (values) part(".values").innerHTML = values;
    if (ended) { training = false; pause.disabled = true; }
  }

  function setPaused(now) {
    paused = now;
    pause.textContent = paused ? "go on" : "pause";
    pause.setAttribute("aria-pressed", paused);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    setPaused(false);
    training = true;
    pause.disabled = false;
    send({ start: settings() });
  });
  form.addEventListener("input", (event) => {
    const output = event.target.parentElement.querySelector("output");
    if (output) output.textContent = event.target.value.replace("-", "−");
  });
  form.addEventListener("change", (event) => { if (training && event.target.name !== "seeds") send({ set: settings() }); });
  pause.addEventListener("click", () => { setPaused(!paused); send({ paused }); });
}

document.querySelectorAll("form.live").forEach(live);

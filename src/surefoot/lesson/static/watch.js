// Shows what the server sends of a policy at play, and sends what the reader sets.
const get = (id) => document.getElementById(id);
const form = get("controls");
let socket, paused = false, values = [], times = [];

function connect() {
  socket = new WebSocket(`ws://${location.host}/play`);
  socket.onopen = () => send({ speed: form.speed.value, greedy: form.greedy.checked, saliency: form.saliency.checked });
  socket.onmessage = (event) => show(JSON.parse(event.data));
  socket.onclose = () => { get("fps").textContent = "0"; if (!get("says").dataset.kept) say("The connection is closed: reload to go on."); };
}

const send = (message) => { if (socket.readyState === 1) socket.send(JSON.stringify(message)); };

const text = (number, digits = 2) => number.toFixed(digits).replace("-", "−");

function say(words, kept = false) {
  const says = get("says");
  if (says.textContent !== words) says.textContent = words;
  if (kept) says.dataset.kept = "1";
}

function show(message) {
  say(message.says, !message.frame && !message.waiting);
  if (!message.frame) return;
  get("frame").src = message.frame;
  get("score").textContent = text(message.score, Number.isInteger(message.score) ? 0 : 2);
  get("at").textContent = message.step;
  if (document.activeElement !== form.seed) form.seed.value = message.seed;
  rows(get("actions"), message.actions);
  if (message.step === 0) values = [];
  if (message.value !== null) {
    get("value").textContent = text(message.value);
    values = [...values, message.value].slice(-300);
    const low = Math.min(...values, 0), high = Math.max(...values, 0.01);
    const at = (v, i) => `${((i * 400) / 299).toFixed(1)} ${(86 - ((v - low) / (high - low)) * 82).toFixed(1)}`;
    get("values").firstElementChild.setAttribute("d", "M" + values.map(at).join("L"));
  } else get("value").textContent = "no critic";
  for (const [id, url] of [["image", message.image], ["overlay", message.overlay]]) {
    get(id).hidden = !url;
    if (url) get(id).src = url;
  }
  if (message.numbers) rows(get("numbers"), message.numbers.map((x, i) => [`${i + 1}`, x, false, message.weights?.[i]]));
  const now = performance.now();
  times = [...times.filter((t) => now - t < 2000), now];
  get("fps").textContent = times.length > 1 ? Math.round((1000 * (times.length - 1)) / (now - times[0])) : 0;
}

function rows(holder, list) { // name, number, taken, share of the bar (the number, if there is none)
  while (holder.children.length < list.length) {
    const row = document.createElement("div");
    row.innerHTML = '<span></span><meter min="0" max="1"></meter><span></span>';
    holder.append(row);
  }
  while (holder.children.length > list.length) holder.lastChild.remove();
  list.forEach(([name, number, taken, share], i) => {
    const [label, meter, value] = holder.children[i].children;
    label.textContent = name;
    meter.value = share ?? (holder.id === "actions" ? number : 0);
    meter.hidden = holder.id !== "actions" && share === undefined;
    value.textContent = text(number);
    holder.children[i].className = taken ? "taken" : "";
  });
}

get("pause").addEventListener("click", () => {
  paused = !paused;
  get("pause").textContent = paused ? "go on" : "pause";
  get("pause").setAttribute("aria-pressed", paused);
  send({ paused });
});
get("step").addEventListener("click", () => { if (!paused) get("pause").click(); send({ step: 1 }); });
get("next").addEventListener("click", () => send({ seed: Number(form.seed.value) + 1 }));
form.seed.addEventListener("change", () => send({ seed: Number(form.seed.value) }));
form.speed.addEventListener("input", () => {
  form.speed.nextElementSibling.textContent = form.speed.value;
  send({ speed: form.speed.value });
});
for (const name of ["greedy", "saliency"]) form[name].addEventListener("change", () => send({ [name]: form[name].checked }));
form.addEventListener("submit", (event) => event.preventDefault());
setInterval(() => { // the curves of a run that trains
  const curves = document.querySelector("figure.play form");
  if (curves && !document.hidden) curves.dispatchEvent(new Event("input"));
}, 5000);
connect();

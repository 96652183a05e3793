// Shows the game that the server sends, and sends what the reader presses.
const get = (id) => document.getElementById(id);
const KEYS = { ArrowUp: "up", KeyW: "up", ArrowDown: "down", KeyS: "down" };
const held = [];
let socket;

function connect() {
  socket = new WebSocket(`ws://${location.host}/play`);
  socket.onmessage = (event) => show(JSON.parse(event.data));
  socket.onclose = () => { if (!get("says").textContent.trim()) get("says").textContent = "The connection is closed: reload to go on."; };
}

const send = (message) => { if (socket.readyState === 1) socket.send(JSON.stringify(message)); };

function show(message) {
  if (get("says").textContent !== message.says) get("says").textContent = message.says;
  if (!message.frame) return;
  get("frame").src = message.frame;
  get("you").textContent = message.you;
  get("policy").textContent = message.policy;
  get("again").hidden = !message.says;
}

function press(move, down) { // the last one that is held counts
  const at = held.indexOf(move);
  if (at >= 0) held.splice(at, 1);
  if (down) held.push(move);
  send({ move: held.at(-1) ?? "none" });
}

for (const [name, down] of [["keydown", true], ["keyup", false]])
  addEventListener(name, (event) => {
    const move = KEYS[event.code];
    if (!move || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    if (!event.repeat) press(move, down);
  });
addEventListener("blur", () => { held.length = 0; send({ move: "none" }); });

function touch(element, moveOf) {
  let move;
  element.addEventListener("pointerdown", (event) => { event.preventDefault(); press(move = moveOf(event), true); });
  for (const name of ["pointerup", "pointercancel", "pointerleave"])
    element.addEventListener(name, () => { if (move) press(move, false); move = undefined; });
}

touch(get("up"), () => "up");
touch(get("down"), () => "down");
touch(get("frame"), (event) => (event.offsetY < get("frame").clientHeight / 2 ? "up" : "down"));
get("again").addEventListener("click", () => { get("again").hidden = true; send({ again: true }); });
connect();

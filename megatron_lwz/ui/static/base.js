// What every page has: the list of keys, times that grow older, news of a run while it goes on.

const body = document.body;

/** Says something to people who do not see the page change. */
export function say(text) {
  document.getElementById("say").textContent = text;
}

/** Calls `act` for a key, unless the person is typing or holds a modifier. `keys`: key → function. */
export function onKeys(keys) {
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    if (event.target.closest("input, textarea, select, dialog[open]")) return;
    const act = keys[event.key];
    if (act && act(event) !== false) event.preventDefault();
  });
}

/** Loads a page and returns it as a document. Nothing of it runs: it is parsed without a window. */
export function load(address) {
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    request.responseType = "document";
    request.open("GET", address);
    request.onload = () =>
      request.status === 200 && request.response ? resolve(request.response) : reject(new Error(`status ${request.status}`));
    request.onerror = () => reject(new Error("the server does not answer"));
    request.send();
  });
}

/** Calls `act` whenever the run has written something, at most every two seconds. */
export function onNews(act) {
  const source = new EventSource(body.dataset.live);
  let waiting = false;
  let last = 0;
  const now = () => {
    waiting = false;
    last = Date.now();
    act();
  };
  source.onmessage = () => {
    if (waiting) return;
    waiting = true;
    setTimeout(now, Math.max(0, last + 2000 - Date.now()));
  };
  source.onopen = () => body.classList.remove("offline");
  source.onerror = () => body.classList.add("offline");
  addEventListener("pagehide", () => source.close());
}

export function grow() {
  for (const time of document.querySelectorAll("time[data-at]")) {
    const seconds = Math.max(0, Date.now() / 1000 - Number(time.dataset.at));
    const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([size]) => seconds >= size) ?? [1, "s"];
    time.textContent = `${Math.round(seconds / size)} ${unit} ago`;
  }
}
setInterval(grow, 5000);

const keys = document.getElementById("keys");
if (keys) {
  document.getElementById("keys-button").addEventListener("click", () => keys.showModal());
  onKeys({ "?": () => keys.showModal() });
}

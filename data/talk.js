// The talking app's page: press and hold to talk by way of gradio's recorder, and names for screen readers.
document.documentElement.lang = "en";
(() => {
  const TAP = 400; // milliseconds; a shorter press starts a recording that the next press ends
  const WAIT = 15000; // for the browser's question whether the microphone may be used
  const shown = e => e && getComputedStyle(e).display !== "none";
  const find = name => document.querySelector(`#clip button.${name}`);
  const recording = () => shown(find("stop-button"));
  let since = 0;

  function stop(until) {
    if (recording()) find("stop-button").click();
    else if (Date.now() < until) setTimeout(() => stop(until), 100);
  }
  function press() {
    if (recording()) { since = 0; stop(0); return; }
    since = Date.now();
    find("record-button")?.click();
  }
  function release() {
    if (since && Date.now() - since >= TAP) stop(Date.now() + WAIT);
    since = 0;
  }
  function hold(button) {
    button.addEventListener("pointerdown", e => {
      if (e.button !== 0) return;
      button.setPointerCapture(e.pointerId);
      press();
    });
    for (const end of ["pointerup", "pointercancel"]) button.addEventListener(end, release);
    button.addEventListener("contextmenu", e => e.preventDefault());
    button.addEventListener("keydown", e => {
      if (![" ", "Enter"].includes(e.key)) return;
      e.preventDefault();
      if (!e.repeat) press();
    });
    button.addEventListener("keyup", e => { if ([" ", "Enter"].includes(e.key)) { e.preventDefault(); release(); } });
    if (!navigator.mediaDevices) {
      button.disabled = true;
      button.textContent = "No microphone here (https or localhost is needed): choose a file, or write";
    }
  }
  const each = (what, name, value) => document.querySelectorAll(what).forEach(e => e.setAttribute(name, value));
  setInterval(() => {
    const button = document.querySelector("#hold");
    if (button && !button.dataset.holds) { button.dataset.holds = "1"; hold(button); }
    each("#last", "aria-live", "polite");
    each("#clip input[type=file]", "aria-label", "Sound file");
    each("#clip canvas, #clip #waveform", "aria-hidden", "true");
    const log = document.querySelector(".tk-log");
    if (log && log.dataset.length !== String(log.textContent.length)) {
      log.dataset.length = log.textContent.length;
      log.scrollTop = log.scrollHeight;
    }
  }, 300);
})();

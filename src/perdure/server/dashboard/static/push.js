// Messages on this device: asks the browser for a subscription, and keeps it known to the server.
(() => {
  "use strict";
  const able = window.isSecureContext && "serviceWorker" in navigator && "PushManager" in window && "Notification" in window;
  const csrf = document.querySelector(".out [name=csrf]")?.value || "";
  const form = document.getElementById("push");
  const said = document.getElementById("push-said");
  const say = (text) => { if (said) said.textContent = text; };

  const text = (bytes) => btoa(String.fromCharCode(...new Uint8Array(bytes))).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
  const bytes = (word) => Uint8Array.from(atob(word.replace(/-/g, "+").replace(/_/g, "/")), (each) => each.charCodeAt(0));
  const digest = async (word) => [...new Uint8Array(await crypto.subtle.digest("SHA-256", new TextEncoder().encode(word)))]
    .map((each) => each.toString(16).padStart(2, "0")).join("");
  const registered = async () => (await navigator.serviceWorker.getRegistration("/"))?.pushManager.getSubscription() || null;

  const subscribe = async () => {
    const registration = await navigator.serviceWorker.register("/static/push-worker.js", { scope: "/" });
    await navigator.serviceWorker.ready;
    const key = form.dataset.serverKey;
    const old = await registration.pushManager.getSubscription();
    if (old && text(old.options.applicationServerKey) === key) return old;
    if (old) await old.unsubscribe();
    return registration.pushManager.subscribe({ userVisibleOnly: true, applicationServerKey: bytes(key) });
  };

  const add = async () => {
    if (await Notification.requestPermission() !== "granted") {
      say("This browser does not allow messages from here. Its settings for this site can change that.");
      return;
    }
    const found = (await subscribe()).toJSON();
    form.elements.endpoint.value = found.endpoint;
    form.elements.p256dh.value = found.keys.p256dh;
    form.elements.auth.value = found.keys.auth;
    form.submit();
  };

  // Once in a while the server hears that this browser is still used; a browser that is not gets no messages after a month. A browser may
  // have changed its subscription by itself, or the server may have removed it: the bell says so, as no message would come any more.
  const lost = () => {
    const bell = document.querySelector(".bell");
    const said = "this device gets no messages any more: open, and add it again";
    bell.classList.add("lost");
    bell.title = said;
    bell.querySelector(".unseen").textContent = said;
  };
  const renew = async () => {
    const mark = `perdure push ${csrf}`;
    if (!csrf || sessionStorage.getItem(mark) || Notification.permission !== "granted") return;
    const found = await registered();
    if (!found) return;
    const answer = await fetch("/notify/renew", { method: "POST", body: new URLSearchParams({ csrf, endpoint: found.endpoint }) });
    if (!answer.ok) return;
    if ((await answer.json()).known) sessionStorage.setItem(mark, "yes");
    else lost();
  };

  const show = async () => {
    const found = await registered();
    const mark = found && await digest(found.endpoint);
    const row = mark && document.querySelector(`[data-mark="${mark}"]`);
    if (row) {
      row.querySelector(".this").hidden = false;
      form.querySelector("button").textContent = "Change this device";
    }
  };

  if (!able) {
    say(window.isSecureContext ? "This browser cannot show push messages. On an iPhone, add this page to the home screen first."
      : "Browsers allow messages only from https addresses and from localhost.");
    return;
  }
  if (form) {
    const button = form.querySelector("button");
    button.disabled = false;
    say("");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      button.disabled = true;
      add().catch((error) => say(`The browser could not subscribe: ${error.message}`)).finally(() => { button.disabled = false; });
    });
    show().catch(() => {});
  }
  renew().catch(() => {});
})();

// Shows push messages, also when no page is open. It loads nothing and intercepts no request.
"use strict";

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

const read = (data) => {
  try {
    const found = data ? data.json() : null;
    return found && typeof found === "object" ? found : {};
  } catch {
    return {};
  }
};
const word = (value, most) => (typeof value === "string" ? value.slice(0, most) : "");
// A path of this dashboard; anything else opens the board.
const place = (path) => {
  const found = new URL(/^\/(?![/\\])/.test(path) ? path : "/", self.location.origin);
  return found.origin === self.location.origin ? found.href : `${self.location.origin}/`;
};

self.addEventListener("push", (event) => {
  const message = read(event.data);
  const id = word(message.id, 100), tag = word(message.tag, 200) || "perdure";
  event.waitUntil((async () => {
    // The same message twice replaces itself silently; a newer one of the same run is told again.
    const shown = await self.registration.getNotifications({ tag });
    await self.registration.showNotification(word(message.title, 200) || "perdure", {
      body: word(message.text, 500) || "Something happened. Open the board to see what.",
      icon: "/static/icon.svg",
      tag,
      renotify: !shown.some((each) => each.data && each.data.id === id),
      data: { id, url: place(word(message.path, 500)) },
    });
  })());
});

self.addEventListener("notificationclick", (event) => {
  event.notification.close();
  const url = event.notification.data ? event.notification.data.url : `${self.location.origin}/`;
  event.waitUntil((async () => {
    const pages = await self.clients.matchAll({ type: "window", includeUncontrolled: true });
    const open = pages.find((page) => page.url === url);
    if (open) return open.focus();
    return self.clients.openWindow(url);
  })());
});

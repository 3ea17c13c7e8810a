// Peer: Bun's publish(). In: WebSocket clients; every one but those on /publish subscribes to one topic, those on
// /direct/NUMBER to one of their own. Out: each message of a /publish connection to all subscribers; one of /direct/publish,
// which begins with a number and a space, to that number's topic; messages on /echo go back to their sender.
// Same paths as bench/floor. Usage: bun server.js [port], default 8101.
const server = Bun.serve({
  hostname: "127.0.0.1",
  port: Number(process.argv[2] ?? 8101),
  fetch(request, server) {
    const { pathname } = new URL(request.url);
    if (server.upgrade(request, { data: pathname })) return;
    return new Response("WebSocket only\n", { status: 426 });
  },
  websocket: {
    idleTimeout: 0, // subscribers never send anything
    sendPings: false,
    perMessageDeflate: false,
    open(socket) {
      if (socket.data.endsWith("/publish") || socket.data.endsWith("/echo")) return;
      const direct = socket.data.indexOf("/direct/");
      socket.subscribe(direct >= 0 ? "d" + socket.data.slice(direct + "/direct/".length) : "c0");
    },
    message(socket, message) {
      if (socket.data.endsWith("/direct/publish")) {
        const space = message.indexOf(" ");
        server.publish("d" + message.slice(0, space), message.slice(space + 1));
      } else if (socket.data.endsWith("/publish")) server.publish("c0", message);
      else if (socket.data.endsWith("/echo")) socket.send(message);
    },
  },
});
console.log(`bun ready ${server.hostname}:${server.port} pid=${process.pid}`);

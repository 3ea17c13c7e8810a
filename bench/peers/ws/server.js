// Peer: the ws package under Node. In: WebSocket clients. Out: each message of a /publish connection to all others that
// are not on /echo; messages on /echo go back to their sender. Same paths as bench/floor.
// Usage: node server.js [port], default 8102.
import { WebSocketServer } from "ws";

const subscribers = new Set();
const server = new WebSocketServer({
  host: "127.0.0.1",
  port: Number(process.argv[2] ?? 8102),
  perMessageDeflate: false,
  backlog: 65535,
});
server.on("connection", (socket, request) => {
  const path = request.url ?? "/";
  socket.on("error", () => socket.terminate());
  if (path.endsWith("/publish")) {
    socket.on("message", (message, binary) => {
      for (const subscriber of subscribers) subscriber.send(message, { binary });
    });
  } else if (path.endsWith("/echo")) {
    socket.on("message", (message, binary) => socket.send(message, { binary }));
  } else {
    subscribers.add(socket);
    socket.on("close", () => subscribers.delete(socket));
  }
});
server.on("listening", () => {
  const { address, port } = server.address();
  console.log(`ws ready ${address}:${port} pid=${process.pid}`);
});

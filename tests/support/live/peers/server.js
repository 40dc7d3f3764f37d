// A Node server with a bit of everything: what tests/live/http/test_real_peers.py asks for.
'use strict';
const crypto = require('crypto');
const fs = require('fs');
const http = require('http');
const zlib = require('zlib');

const big = fs.readFileSync('big.bin');
const text = fs.readFileSync('text.txt');
const etag = '"' + crypto.createHash('sha1').update(big).digest('hex') + '"';
let waiting = null;

function sized(request, response) {
  response.setHeader('ETag', etag);
  response.setHeader('Accept-Ranges', 'bytes');
  if (request.headers['if-none-match'] === etag) return response.writeHead(304).end();
  const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range || '');
  if (!range) return response.writeHead(200, { 'Content-Length': big.length }).end(big);
  const [first, last] = [Number(range[1]), Number(range[2])];
  if (first >= big.length) return response.writeHead(416).end();
  const part = big.subarray(first, last + 1);
  response.writeHead(206, {
    'Content-Length': part.length, 'Content-Range': `bytes ${first}-${last}/${big.length}`,
  });
  return response.end(part);
}

function digest(request, response) {
  const hash = crypto.createHash('sha256');
  request.on('data', (piece) => hash.update(piece));
  request.on('end', () => response.end(hash.digest('hex')));
}

const routes = {
  '/big.bin': sized,
  '/digest': digest,
  '/text.txt': (request, response) => {
    if (!/gzip/.test(request.headers['accept-encoding'] || '')) return response.end(text);
    response.setHeader('Content-Encoding', 'gzip');
    return response.end(zlib.gzipSync(text));
  },
  '/chunks': (request, response) => {
    response.setHeader('Trailer', 'X-Sum');
    for (let at = 0; at < big.length; at += 9999) response.write(big.subarray(at, at + 9999));
    response.addTrailers({ 'X-Sum': etag });
    response.end();
  },
  '/hints': (request, response) => {
    response.writeEarlyHints({ link: '</a.css>; rel=preload' }, () => response.end('ok'));
  },
  '/empty': (request, response) => response.writeHead(204).end(),
  '/first': (request, response) => {
    response.write('first\n');
    waiting = response;
  },
  '/then': (request, response) => {
    waiting.end('then\n');
    response.end('told');
  },
  '/page': (request, response) => response.end(fs.readFileSync('page.html')),
  '/report': (request, response) => {
    request.pipe(fs.createWriteStream('report.part')).on('finish', () => {
      fs.renameSync('report.part', 'report.json');
      response.end();
    });
  },
};

const server = http.createServer((request, response) => {
  const route = routes[request.url.split('?')[0]];
  if (route) route(request, response);
  else response.writeHead(404).end();
});

server.on('checkContinue', (request, response) => {
  if (request.url === '/refuse') return response.writeHead(413, { Connection: 'close' }).end('no');
  response.writeContinue();
  return digest(request, response);
});

// WebSocket, RFC 6455: single frames of text, sent back as they came.
function echo(socket, buffer) {
  while (buffer.length >= 2) {
    let size = buffer[1] & 127;
    let at = 2;
    if (size === 126) { size = buffer.length < 4 ? Infinity : buffer.readUInt16BE(2); at = 4; }
    if (buffer.length < at + 4 + size) break;
    const mask = buffer.subarray(at, at + 4);
    const payload = Buffer.from(buffer.subarray(at + 4, at + 4 + size)).map((b, i) => b ^ mask[i % 4]);
    const head = size < 126 ? Buffer.from([buffer[0], size])
      : Buffer.from([buffer[0], 126, size >> 8, size & 255]);
    socket.write(Buffer.concat([head, payload]));
    if ((buffer[0] & 15) === 8) socket.end();
    buffer = buffer.subarray(at + 4 + size);
  }
  return buffer;
}

server.on('upgrade', (request, socket, early) => {
  const accept = crypto.createHash('sha1')
    .update(request.headers['sec-websocket-key'] + '258EAFA5-E914-47DA-95CA-C5AB0DC85B11')
    .digest('base64');
  socket.write('HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n'
    + `Sec-WebSocket-Accept: ${accept}\r\n\r\n`);
  let buffer = echo(socket, early);
  socket.on('data', (piece) => { buffer = echo(socket, Buffer.concat([buffer, piece])); });
  socket.on('error', () => {});
});

server.listen(process.env.PORT, process.env.HOST);

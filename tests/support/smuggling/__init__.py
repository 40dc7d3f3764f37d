"""Known tricks of request and response smuggling, as tables for tests and fuzzers.

`requests` and `responses` hold what must be refused. Each trick has its bytes, the status that a
careful proxy answers with, and its source: an advisory, an issue, a section of RFC 9110 or 9112.
"Garden" is the list of bugs that the HTTP Garden found (github.com/narfindustries/http-garden,
TROPHIES.md), S for servers and T for proxies; "Kettle" his papers at portswigger.net/research
(2019 reborn, 2021 HTTP/2, 2022 browser-powered, 2025 HTTP/1.1 must die); "funky chunks" w4ke.info,
2025.
"""

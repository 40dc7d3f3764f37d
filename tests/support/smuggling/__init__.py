"""Known tricks of request and response smuggling, as tables that tests and fuzzers share.

`requests` and `responses` hold what has to be refused. Each trick has the bytes, what a
careful proxy answers, and where it was seen in the wild: an advisory, an issue, a section of
RFC 9110 or 9112. "Garden" is the list of bugs that the HTTP Garden found
(github.com/narfindustries/http-garden, TROPHIES.md), S for servers and T for proxies;
"Kettle" his papers at portswigger.net/research (2019 reborn, 2021 HTTP/2, 2022 browser-powered,
2025 HTTP/1.1 must die); "funky chunks" w4ke.info, 2025.
"""

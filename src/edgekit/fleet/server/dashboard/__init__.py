"""What people see of a fleet in a browser: pages from templates, kept up to date by fragments of themselves.

```
routes, actions    requests → pages, and what people decide; `server.app` includes `routes.router`
sessions           who sits at the browser: a signed cookie in place of the token that was typed
pages              templates, the headers of every answer, errors as pages
views              rows → what a page shows, pure (overview, rollout, comparison, device, …)
queries            rows of the database
```

Nothing is fetched from elsewhere: style, scripts and their licences lie in `static`.
"""

"""What was found in a model, what was done about it, and what that is worth: recorded, reported, shown.

While a graph is compiled, called by `hooks` and `backends`:

record          begins, fills and finishes the record of a graph, if somebody asked for one (`collect`, `explain`, `dump`, a log)
contexts        who watches a compilation, and the records that wait for its backward
graph_record    what is known of one graph; as a `report.Graph` when it is asked for
dump            writes each record to a folder: `STE_COMPILE_DUMP`, `options={"dump": ...}`

What a record asks, of nodes and sites:

describe        types, lines of text, counts of work, what keeps a surrogate
source          the user's file, line and expression
breaks          where Dynamo stopped, and why

The result, plain data:

report          `Report` and its parts, to and from JSON
suggestion      one of its parts: an edit, and what it would free
figures         amounts of work and memory, and how they are said
text            `print(report)`; tables with rich, and plain lines without
summary         the same for `run`: one row for each line of code
page            `report.to_html()`: page.html.j2, page.css and page.js; needs pygments
drawing         the page's drawing of the nodes around a site

For the user, called by `ste_compile.explain` and the command line:

explain         compiles a model with the passes and without, and measures what each site frees
calls           a call of the user's function, compiled for that alone, that leaves everything as it was
suggest         edits that would free more, tried and ranked; each kind has a finder
other_levels, second_use, buckets, lost_markers, broken_graphs      the finders
edits           what a finder is given, and returns
without_use     a graph from Dynamo without a use of a value
target          what the command line's `explain` names, loaded
progress        a line on the terminal meanwhile
kept            stores what was found beside Inductor's caches, for a `run` whose graphs come from them

`text` and `page` are imported when they are needed: what they need is the extra `ste-compile[report]`, and slow to import.
"""

# Ranks the vertices of a graph.
import random

import igraph


def handler(event, context):
    random.seed(event["seed"])
    graph = igraph.Graph.Barabasi(event["size"], 10)
    ranks = graph.pagerank()
    return {"answer": ranks.index(max(ranks))}

"""Every text that is sent to Shopify's Admin API; nothing is composed while running.

`schema.graphql` beside this file is our copy of the types and fields that these queries use.

A bulk query has one root connection, at most five connections and two levels (shopify.md section 7);
Shopify ignores `first` in it and pages by itself.
"""

_PRODUCT_FIELDS = """
  id
  title
  handle
  status
  publishedAt
  vendor
  productType
  tags
  updatedAt
  isGiftCard
  featuredImage { url }
"""

# `image` and `featuredImage` are deprecated for `media`, yet they are the two pictures that a webhook body
# names too; `media` is a connection, which would double the lines of a bulk result.
_VARIANT_FIELDS = """
  id
  title
  price
  compareAtPrice
  barcode
  sku
  createdAt
  selectedOptions { value }
  image { url }
  inventoryItem { id }
  unitPrice { amount }
  unitPriceMeasurement { measuredType quantityValue quantityUnit referenceValue referenceUnit }
"""

_OPERATION_FIELDS = """
  id
  type
  status
  errorCode
  query
  createdAt
  objectCount
  fileSize
  url
  partialDataUrl
"""

# Rooted at the variants, so that each line of the result carries its product: nothing to join.
BULK_CATALOGUE = (
    f"{{ productVariants {{ edges {{ node {{ {_VARIANT_FIELDS} product {{ {_PRODUCT_FIELDS} }} }} }} }} }}"
)

# A level's line names its item itself, so its parent's line needs not be kept.
BULK_STOCK = """{
  inventoryItems { edges { node {
    id
    inventoryLevels { edges { node {
      id
      updatedAt
      item { id tracked }
      location { id }
      quantities(names: ["available"]) { name quantity }
    } } }
  } } }
}"""

BULK_QUERIES = (BULK_CATALOGUE, BULK_STOCK)

RUN_BULK = f"""
mutation RunBulk($query: String!) {{
  bulkOperationRunQuery(query: $query, groupObjects: false) {{
    bulkOperation {{ {_OPERATION_FIELDS} }}
    userErrors {{ code field message }}
  }}
}}
"""

BULK_OPERATION = f"""
query BulkOperation($id: ID!) {{ bulkOperation(id: $id) {{ {_OPERATION_FIELDS} }} }}
"""

RUNNING_BULK = f"""
query RunningBulk {{
  bulkOperations(first: 25, query: "operation_type:query AND (status:created OR status:running)") {{
    nodes {{ {_OPERATION_FIELDS} }}
  }}
}}
"""

CANCEL_BULK = """
mutation CancelBulk($id: ID!) {
  bulkOperationCancel(id: $id) {
    bulkOperation { id status }
    userErrors { field message }
  }
}
"""

# Over products, not variants: a change of the title or status moves the product's updatedAt only.
CHANGED_PRODUCTS = f"""
query ChangedProducts($first: Int!, $after: String, $query: String!, $variants: Int!) {{
  products(first: $first, after: $after, query: $query, sortKey: UPDATED_AT) {{
    nodes {{
      {_PRODUCT_FIELDS}
      variants(first: $variants) {{
        nodes {{ {_VARIANT_FIELDS} }}
        pageInfo {{ hasNextPage endCursor }}
      }}
    }}
    pageInfo {{ hasNextPage endCursor }}
  }}
}}
"""

PRODUCT = f"""
query Product($id: ID!, $first: Int!, $after: String) {{
  product(id: $id) {{
    {_PRODUCT_FIELDS}
    variants(first: $first, after: $after) {{
      nodes {{ {_VARIANT_FIELDS} }}
      pageInfo {{ hasNextPage endCursor }}
    }}
  }}
}}
"""

SHOP = """
query Shop { shop { id name myshopifyDomain currencyCode ianaTimezone taxesIncluded updatedAt } }
"""

SCOPES = """
query Scopes { currentAppInstallation { accessScopes { handle } } }
"""

# What a connection is looked at by: none of it needs a scope.
CONNECTION = """
query Connection {
  shop { name currencyCode ianaTimezone taxesIncluded }
  currentAppInstallation { accessScopes { handle } }
}
"""

LOCATIONS = """
query Locations($first: Int!, $after: String) {
  locations(first: $first, after: $after, includeInactive: true) {
    nodes { id name isActive }
    pageInfo { hasNextPage endCursor }
  }
}
"""

VARIANTS_COUNT = """
query VariantsCount { productVariantsCount(limit: null) { count precision } }
"""

# Of this app in this shop, and those only that were made through this API: none of its shopify.app.toml.
SUBSCRIPTIONS = """
query Subscriptions($first: Int!, $after: String) {
  webhookSubscriptions(first: $first, after: $after) {
    nodes { id topic uri format filter includeFields }
    pageInfo { hasNextPage endCursor }
  }
}
"""

SUBSCRIBE = """
mutation Subscribe($topic: WebhookSubscriptionTopic!, $uri: String!) {
  webhookSubscriptionCreate(topic: $topic, webhookSubscription: {uri: $uri, format: JSON}) {
    webhookSubscription { id }
    userErrors { field message }
  }
}
"""

MOVE_SUBSCRIPTION = """
mutation MoveSubscription($id: ID!, $uri: String!) {
  webhookSubscriptionUpdate(id: $id, webhookSubscription: {uri: $uri, format: JSON}) {
    webhookSubscription { id }
    userErrors { field message }
  }
}
"""

UNSUBSCRIBE = """
mutation Unsubscribe($id: ID!) {
  webhookSubscriptionDelete(id: $id) {
    deletedWebhookSubscriptionId
    userErrors { field message }
  }
}
"""

QUERIES = (
    RUN_BULK,
    BULK_OPERATION,
    RUNNING_BULK,
    CANCEL_BULK,
    CHANGED_PRODUCTS,
    PRODUCT,
    SHOP,
    SCOPES,
    CONNECTION,
    LOCATIONS,
    VARIANTS_COUNT,
    SUBSCRIPTIONS,
    SUBSCRIBE,
    MOVE_SUBSCRIPTION,
    UNSUBSCRIBE,
)

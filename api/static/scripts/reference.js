"use strict";

const container = document.getElementById("swagger-ui");

SwaggerUIBundle({
  url: container.dataset.document,
  domNode: container,
  deepLinking: true,
  displayRequestDuration: true,
  persistAuthorization: false,
  validatorUrl: null,
});
